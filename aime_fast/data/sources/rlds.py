"""RLDS recordings in TFRecord files, as TFDS writes them and DMC-VB is published: one record an episode."""

import contextlib
import math
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.action_origin import FOLLOWS, LED, ZeroActions, decide
from aime_fast.data.episode import Episode
from aime_fast.data.sources.frames import LAST_FRAME_NOTE, LED_NOTE, decode_picture, episode_of, size_notes
from aime_fast.data.sources.source import Pictures, Source, require
from aime_fast.data.sources.tfrecord_file import record_at, records
from aime_fast.errors import UserError

MOST_BYTES = 3 * 4096**2
"""Largest unpacked size of a picture that is packed with zlib."""

REWARD_NOTE = "no first step has a reward and last steps do: reward[t] was earned on the way to frame t, and is shifted"

Place = tuple[Path, int, str]
"""The file of a record, its first byte, and its name for error messages."""


def open_rlds(where: Path, paths: Sequence[Path], pictures: Pictures) -> Source:
    """Open records with `steps/observation/pixels` (PNG or JPEG pictures, or raw bytes of square ones),
    `steps/action` and `steps/reward`, and optionally `steps/is_last` and `steps/is_terminal`.

    RLDS: action[t] is taken after frame t and earns reward[t]. The step marked `is_last` has neither, and is left
    out. If the rewards show that they were stored with the frame they led to, as in DMC-VB, they are shifted.
    `pictures.camera` names another observation. `UserError` for damage, missing features and steps that do not match.
    """
    require("tfrecord", "tfrecord", where)
    places: list[Place] = []
    notes: list[str] = []
    counts, first_rewards, last_rewards, zeros = [], [], [], ZeroActions()
    for path in paths:
        for number, (start, record) in enumerate(records(path)):
            name = f"{path}, episode {number}"
            steps = _Steps(record, pictures.camera, name)
            notes += [] if places else size_notes(steps.picture(0).shape, pictures.size)
            places.append((path, start, name))
            counts.append((len(steps.rewards), steps.actions_taken))
            zeros.see(steps.actions, ends=steps.actions_taken < len(steps.rewards))
            first_rewards.append(steps.rewards[0])
            last_rewards += steps.rewards[steps.actions_taken :].tolist()
    if not places:
        raise UserError(f"{where}: there is no record in it; give a folder of whole TFRecord files")
    arriving = not any(first_rewards) and any(last_rewards)
    origin = decide(zeros, str(where), pictures.actions, usual=FOLLOWS)
    led = origin.stored == LED
    lengths = [steps - 1 if arriving or led else taken for steps, taken in counts]
    if lengths != [steps for steps, _ in counts]:
        notes.append(LAST_FRAME_NOTE)
    if arriving:
        notes.append(REWARD_NOTE)
    notes += [LED_NOTE] if led else []
    read = partial(_read, places, pictures, arriving, led)
    return Source("RLDS (TFRecord)", str(where), None, lengths, pictures.size, read, tuple(notes), origin=origin)


def _read(places: list[Place], pictures: Pictures, arriving: bool, led: bool, number: int) -> Episode:
    path, start, name = places[number]
    steps = _Steps(record_at(path, start), pictures.camera, name)
    count = len(steps.rewards) - 1 if arriving or led else steps.actions_taken
    images = [steps.picture(step) for step in range(count)]
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{name}: its pictures have several sizes; record one size")
    rewards = steps.rewards[1:] if arriving else steps.rewards[:count]
    actions = steps.actions[1:] if led else steps.actions[:count]
    return episode_of(name, np.array(images), pictures.size, actions, rewards, steps.terminated)


class _Steps:
    """The steps of one record. Pictures are decoded on demand."""

    def __init__(self, record: bytes, camera: str | None, name: str) -> None:
        from google.protobuf.message import DecodeError
        from tfrecord.example_pb2 import SequenceExample

        self._name = name
        try:
            # Has the same encoding as an Example, and can also hold lists of features.
            self._message = SequenceExample.FromString(record)
        except DecodeError as error:
            raise UserError(f"{name}: the record is no tf.train.Example ({error}); copy or write it again") from error
        self._pictures = self._values(f"steps/observation/{camera or 'pixels'}", "bytes_list")
        self.rewards = np.array(self._values("steps/reward", "float_list"), np.float32)
        steps = len(self._pictures)
        actions = np.array(self._values("steps/action", "float_list"), np.float32)
        if steps == 0 or len(self.rewards) != steps or len(actions) % steps or len(actions) == 0:
            raise UserError(
                f"{name}: {steps} pictures, {len(self.rewards)} rewards and {len(actions)} action numbers do not make "
                "steps; fix the recording"
            )
        self.actions = actions.reshape(steps, -1)
        last = self._flags("steps/is_last")
        terminal = self._flags("steps/is_terminal")
        early = (last | terminal)[:-1]
        if early.any():
            raise UserError(f"{name}: step {early.argmax()} of {steps} is marked as the last; split the episode there")
        self.terminated = bool(terminal[-1])
        self.actions_taken = steps - bool(last[-1] or terminal[-1])

    def picture(self, step: int) -> np.ndarray:
        """The picture of a step, uint8 [H,W,3]."""
        data = self._pictures[step]
        try:
            if data.startswith((b"\x89PNG", b"\xff\xd8\xff")):
                return decode_picture(data)
            data = _unpacked(data)
            side = math.isqrt(len(data) // 3)
            return np.frombuffer(data, np.uint8).reshape(side, side, 3)
        except ValueError as error:
            raise UserError(
                f"{self._name}: the picture of step {step} is damaged, or neither PNG, JPEG nor square raw bytes "
                f"({error}); copy or convert it"
            ) from error

    def _flags(self, key: str) -> np.ndarray:
        values = self._values(key, "int64_list", required=False)
        if values and len(values) != len(self._pictures):
            raise UserError(f"{self._name}: {len(values)} {key} for {len(self._pictures)} steps; fix the recording")
        return np.array(values, bool) if values else np.zeros(len(self._pictures), bool)

    def _values(self, key: str, kind: str, required: bool = True) -> Sequence[Any]:
        """All values of a feature, end to end."""
        features, lists = self._message.context.feature, self._message.feature_lists.feature_list
        if key in features:
            return getattr(features[key], kind).value
        if key in lists:
            return [value for feature in lists[key].feature for value in getattr(feature, kind).value]
        if required:
            has = ", ".join(sorted([*features, *lists])) or "nothing"
            raise UserError(f"{self._name}: no {key}; it holds {has}. Name the pictures with --camera, or add them")
        return []


def _unpacked(data: bytes) -> bytes:
    """Data that zlib packed, as TFDS may store a tensor, unpacked; other data unchanged. The checksum decides."""
    if data[:1] == b"\x78":
        with contextlib.suppress(zlib.error):
            stream = zlib.decompressobj()
            content = stream.decompress(data, MOST_BYTES)
            if stream.eof:
                return content
    return data
