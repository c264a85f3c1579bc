"""Whether frames answer the actions beside them, or those one row earlier or later.

The change from a frame to the next is predicted from the frames before it. What is left is predicted from the action k
rows later, in other episodes than those that the regression saw. Two ways of reading the action are used:

- its innovation, which is what earlier actions do not tell of it. In the right rows the frame answers the innovation
  of row 0 and those before, but not those after: they are drawn later. The last row that is answered shows the shift.
- the action itself, where it has no innovation, as a swing of a joint. Then the row that predicts best shows it.

An action may depend on its own frame, as a policy's does. Then later rows tell of the change too, but more and more
rows do, and no sharp end is seen; or a later one does while some before it tell less. Then nothing is said.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

LAGS = (-2, -1, 0, 1, 2, 3)
"""Rows, relative to that of the frame, whose actions are compared. No verdict names the first, which only shows whether
the one after it is a peak."""
SIDE, COMPONENTS, MODULATING = 32, 24, 12
"""Grey pixels of a line; principal components of frames and of changes; those by which an action's effect varies."""
ORDER = 3
"""Earlier actions from which one is predicted."""
BLOCK = 36
"""Rows of an episode whose gain counts as one sample: longer than actions remember."""
FOLDS = 4
FEWEST_ROWS, FEWEST_EPISODES, MOST_ROWS = 400, 4, 12_000
CLEAR, SEEN = 4.0, 2.5
"""Standard errors from which a gain is taken as real, and below which as none."""
EARLIER_CLEAR, EARLIER_SHARE = 6.0, 0.05
"""A frame may answer weakly at first, so an answer that comes a row late must be this clear and exceed the first."""
FAR = 1.2
"""Gain of the best row's action over the others' from which it decides."""
TOLD = 0.2
"""Share of the best action's gain that the best innovation must reach; otherwise actions hardly have innovations."""
SHARP = 0.25
"""Largest gain after the last row that is answered, as a share of that one's."""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

Recorded = tuple[np.ndarray, np.ndarray]
"""Frames uint8 [N,S,S,3] and actions float32 [N,A] of an episode."""


@dataclass(frozen=True)
class Alignment:
    """What the frames say about the rows of the actions."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")
    verdict: Annotated[str, Field(pattern="^(agrees|earlier|later|unclear)$")]
    """Frames answer the action of their row, that one row `earlier` or `later`; or it can't be told."""

    @property
    def line(self) -> str | None:
        """What was found and what to do about it; None where nothing was."""
        return {
            "agrees": "frames answer the actions of their row",
            "later": "frames answer the actions one row later: they seem to have led to their frame; "
            "read the recording with --actions led",
            "earlier": "frames answer the actions one row earlier: "
            "read the recording with --actions follows, or mend a delay of its recorder",
        }.get(self.verdict)

    @property
    def warning(self) -> str | None:
        """The line if actions seem to be in other rows."""
        return self.line if self.verdict in ("earlier", "later") else None


UNCLEAR = Alignment("unclear")


def check_alignment(episodes: Iterable[Recorded], most_rows: int = MOST_ROWS) -> Alignment:
    """Compare the frames of episodes with their actions; `unclear` if there are too few, or nothing is answered.

    Stops reading at `most_rows` frames. Takes a few seconds for `MOST_ROWS`, in proportion to them.
    """
    chosen, rows = [], 0
    for frames, actions in episodes:
        if rows >= most_rows:
            break
        if len(frames) > BLOCK:
            chosen.append((frames, actions))
            rows += len(frames)
    widths = {actions.shape[1] for _, actions in chosen}
    if rows < FEWEST_ROWS or len(chosen) < FEWEST_EPISODES or len(widths) != 1 or 0 in widths:
        return UNCLEAR
    if np.ptp(np.concatenate([actions for _, actions in chosen]), axis=0).max() == 0:
        return UNCLEAR
    gains = Gains(chosen)
    return Alignment(judge(gains.of(innovations=True), gains.of(innovations=False)))


def judge(innovation: np.ndarray, plain: np.ndarray) -> str:
    """The verdict of `Alignment` from gains [len(LAGS), blocks] of both readings of actions."""
    gain, clear = innovation.mean(1), _clarity(innovation)
    at = {lag: place for place, lag in enumerate(LAGS)}
    if gain.max() < TOLD * plain.mean(1).max():
        return _best_row(plain, at)
    quiet = [all(clear[at[later]] < SEEN for later in LAGS if later > lag) for lag in LAGS]
    ends = [clear[row] > CLEAR and quiet[row] and _falls_to(gain, row) for row in range(len(LAGS))]
    if ends[at[1]] and gain[at[2]] < SHARP * gain[at[1]]:
        return "later"
    if ends[at[0]]:
        # Frames that move late answer no innovation of their row; then a later row's action predicts best.
        return "unclear" if _best_row(plain, at) == "later" else "agrees"
    late = gain[at[0]] < EARLIER_SHARE * gain[at[-1]] and clear[at[0]] < SEEN
    if clear[at[-1]] > EARLIER_CLEAR and quiet[at[0]] and late:
        return "earlier"
    return _best_row(plain, at)


def _falls_to(gain: np.ndarray, last: int) -> bool:
    """Whether no row between the one that is answered most and the last tells less than the last."""
    peak = int(gain[: last + 1].argmax())
    return bool(gain[peak : last + 1].min() == gain[last])


def _best_row(plain: np.ndarray, at: dict[int, int]) -> str:
    """The verdict by the row whose action predicts best, if it does so clearly and by far."""
    gain = plain.mean(1)
    best = int(gain.argmax())
    verdicts = {at[-1]: "earlier", at[0]: "agrees", at[1]: "later"}
    others = [other for other in (at[-2], *verdicts) if other != best]
    needed = EARLIER_CLEAR if best == at[-1] else CLEAR
    if best not in verdicts or gain[best] < FAR * gain[others].max():
        return "unclear"
    return verdicts[best] if _clarity(plain[[best]] - plain[others]).min() > needed else "unclear"


def _clarity(gains: np.ndarray) -> np.ndarray:
    """Mean of each row of gains [n, blocks] in its standard errors."""
    return gains.mean(1) / (gains.std(1, ddof=1) / np.sqrt(gains.shape[1]) + 1e-12)


class Gains:
    """How much better changes of frames are predicted with an action than from frames alone."""

    def __init__(self, episodes: Sequence[Recorded], lags: Sequence[int] = LAGS) -> None:
        """Take at least `FEWEST_EPISODES` episodes longer than `BLOCK`."""
        self._lags = lags
        grey = [_grey(frames) for frames, _ in episodes]
        whole, changes = np.concatenate(grey), np.concatenate([np.diff(part, axis=0) for part in grey])
        mean, basis, motion = whole.mean(0), _components(whole - whole.mean(0)), _components(changes)
        actions = [actions.astype(np.float64) for _, actions in episodes]
        readings = {True: _innovations(actions), False: actions}
        states, history, target, owners = [], [], [], []
        self._actions: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for number, part in enumerate(grey):
            rows = np.arange(ORDER + max(0, -min(lags)), len(part) - max(1, *lags))
            state = (part - mean) @ basis
            moved = np.concatenate([np.zeros((1, motion.shape[1])), np.diff(part, axis=0) @ motion])
            states.append(state[rows])
            history.append(np.concatenate([moved[rows], moved[rows - 1]], 1))
            target.append(moved[rows + 1])
            owners.append(np.stack([np.full(len(rows), number), np.arange(len(rows)) // BLOCK], 1))
            for kind, columns in readings.items():
                self._actions[kind].append(np.stack([columns[number][rows + lag] for lag in lags]))
        owner = np.concatenate(owners)
        self._folds = owner[:, 0] % FOLDS
        self._blocks = np.unique(owner, axis=0, return_inverse=True)[1].reshape(-1)
        state = _scaled(np.concatenate(states)).clip(-3, 3)
        ones, few = np.ones((len(state), 1)), state[:, :10]
        squares = (few[:, :, None] * few[:, None])[:, *np.triu_indices(few.shape[1])]
        known = np.concatenate([ones, state, _scaled(np.concatenate(history)), 0.3 * squares], 1)
        changed = np.concatenate(target)
        left = changed - _predicted(known, changed, self._folds, (1e-3, 1e-2, 1e-1))
        self._left = left / (left.std(0) + 1e-9)
        self._modulation = np.concatenate([ones, state[:, :MODULATING]], 1)

    def of(self, innovations: bool) -> np.ndarray:
        """Gain of the action at each lag, of its innovation or of itself: [lags, blocks], in nats a row."""
        actions = np.concatenate(self._actions[innovations], 1)
        actions = actions / (actions.std((0, 1)) + 1e-9)
        sizes = np.bincount(self._blocks)
        gains = []
        for at_lag in actions:
            inputs = (at_lag[:, :, None] * self._modulation[:, None]).reshape(len(at_lag), -1)
            error = self._left - _predicted(inputs, self._left, self._folds, PENALTIES)
            gain = 0.5 * (np.square(self._left) - np.square(error)).sum(1)
            gains.append(np.bincount(self._blocks, gain) / sizes)
        return np.array(gains)


def _grey(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [N,S,S,3] as float64 [N, SIDE^2]; S is a multiple of 16."""
    count, size = frames.shape[:2]
    grey = frames.mean(3, dtype=np.float32)
    side = SIDE if size % SIDE == 0 else 16
    return grey.reshape(count, side, size // side, side, size // side).mean((2, 4)).reshape(count, -1)


def _components(rows: np.ndarray) -> np.ndarray:
    """The first principal directions of `rows` [N,P], from at most 400 of them: [P, COMPONENTS]."""
    some = rows[:: -(-len(rows) // 400)]
    return np.linalg.svd(some, full_matrices=False)[2][:COMPONENTS].T


def _scaled(columns: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1."""
    return (columns - columns.mean(0)) / (columns.std(0) + 1e-9)


def _innovations(actions: list[np.ndarray]) -> list[np.ndarray]:
    """What the `ORDER` actions before do not tell of each, by one linear regression; NaN for the first ones."""
    past = [np.concatenate([a[ORDER - 1 - i : len(a) - 1 - i] for i in range(ORDER)], 1) for a in actions]
    inputs = [np.concatenate([part, np.ones((len(part), 1))], 1) for part in past]
    inputs_all, targets = np.concatenate(inputs), np.concatenate([a[ORDER:] for a in actions])
    weights = np.linalg.lstsq(inputs_all, targets, rcond=None)[0]
    return [
        np.concatenate([np.full((ORDER, a.shape[1]), np.nan), a[ORDER:] - part @ weights])
        for a, part in zip(actions, inputs, strict=True)
    ]


def _predicted(inputs: np.ndarray, targets: np.ndarray, folds: np.ndarray, penalties: Sequence[float]) -> np.ndarray:
    """Ridge predictions of each fold from the others; the penalty is the one with the least error."""
    best, least = np.zeros_like(targets), np.inf
    solved = []
    for fold in np.unique(folds):
        seen = folds != fold
        values, vectors = np.linalg.eigh(inputs[seen].T @ inputs[seen])
        solved.append((~seen, values.clip(0), vectors, vectors.T @ (inputs[seen].T @ targets[seen]), seen.sum()))
    for penalty in penalties:
        found = np.empty_like(targets)
        for held, values, vectors, projected, count in solved:
            found[held] = inputs[held] @ (vectors @ (projected / (values + penalty * count)[:, None]))
        error = np.square(targets - found).sum()
        if error < least:
            best, least = found, error
    return best
