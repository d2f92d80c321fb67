"""Two variants of the multi-task chapter's joint model: experts, and projected gradients.

They train as the joint model does, with its settings, at the two shares of the ratings for which
these were chosen; nothing of them is tuned.

Gates: Ma et al., KDD 2018. Projection: Yu et al., NeurIPS 2020.
"""

from __future__ import annotations

from typing import Any

from rectutor.ratings import to_label
from study.core import Draw, rated
from study.histories import projecting

SHARES = (0.05, 1.0)


def with_experts(code: Any) -> Any:
    """The chapter's `JointModel` with two experts of half the width, mixed by each task."""
    ops = code.ops

    class JointWithExperts(code.JointModel):  # type: ignore[misc]
        """As many numbers a user and a movie; the heads read half of them at a time."""

        def __init__(self, num_users: int, num_movies: int, members: int = 8, dim: int = 8) -> None:
            super().__init__(num_users, num_movies, members, dim // 2)
            tables = (self.user_table, self.movie_table)
            self.second = [self.expect("table", table.shape) for table in tables]
            # a task, a member, an expert: the mean of both at first
            self.gates = self.add_weight((2, members, 2), "zeros")

        def mixed(self, task: int) -> list[Any]:
            """The two tables as a task reads them, `(m, rows, d / 2)`."""
            gate = ops.softmax(self.gates[task])[:, :, None, None]  # (m, 2, 1, 1)
            first = (self.user_table, self.movie_table)
            pairs = zip(first, self.second, strict=True)
            return [gate[:, 0] * one + gate[:, 1] * other for one, other in pairs]

        def call(self, x: Any) -> dict[str, Any]:
            """Scores and labels of all movies, `(m, B, M + 1)`."""
            users, movies = self.mixed(0)
            p = ops.take(users, x["user_id"], axis=1)  # (m, B, d / 2)
            q = ops.transpose(movies, (0, 2, 1))  # (m, d / 2, M + 1)
            watch = ops.matmul(p, q) + self.popularity
            users, movies = self.mixed(1)
            p = ops.take(users, x["user_id"], axis=1)
            q = ops.transpose(movies, (0, 2, 1))
            biases = ops.take(self.user_bias, x["user_id"], axis=1)
            biases = biases + self.movie_bias + self.kappa * self.popularity
            rating = ops.matmul(p * (0.1 + self.g) + self.v, q) + biases
            return {"watch": watch, "rating": rating + ops.matmul(p, self.w) + self.mean}

    return JointWithExperts


def at_shares(draw: Draw) -> dict[str, Any]:
    """Both variants at both shares; nothing is known of a test pair."""
    code, settings, rows = draw.code, draw.settings, draw.shuffled.ratings
    rows = rows.assign(label=to_label(rows["rating"], draw.data.rating_scale))
    sizes = {"num_users": draw.data.num_users, "num_movies": draw.data.num_movies}
    split = code.split_for_stars(rows, draw.seed, **sizes)
    known, found = code.known(split), {}
    kinds = {
        "joint with experts": with_experts(code),
        "joint, projected": projecting(code, code.JointModel),
    }
    for name, kind in kinds.items():
        for share in SHARES:
            code.keras.utils.set_random_seed(draw.seed)
            model = kind(**sizes, members=settings.members, dim=settings.dim)
            shown = code.some_rated(known, share, draw.seed)
            code.train_joint(model, known, shown, (1, 1), settings, draw.seed)
            predicted = code.joint_labels(model, split.test)
            arm = code.of_share(name, share).partition("/")[2]
            found[arm] = rated(predicted, split.test["label"], split.test["user_id"], share=share)
    return found
