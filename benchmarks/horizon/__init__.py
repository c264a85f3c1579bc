"""The protocol by which changes of the model are judged: docs/learning.md."""
