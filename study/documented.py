"""The figures that the documentation prints for MovieLens 100K, and the arms that make them anew.

GRU4Rec's and SASRec's are of MovieLens 1M, which no arm of the study is trained on.
"""

from __future__ import annotations

from typing import NamedTuple


class Documented(NamedTuple):
    """A figure of the documentation.

    Attributes:
        arm: which arm repeats the recipe.
        key: the arm's metric, or fact.
        what: what it is called.
        value: digit for digit as printed; several where published copies differ.
    """

    arm: str
    key: str
    what: str
    value: tuple[str, ...]


FIGURES = (
    Documented("ranking/documented", "test_loss", "test loss", ("0.0659",)),
    Documented("ranking/documented", "rmse", "test RMSE", ("0.2568",)),
    Documented(
        "retrieval/random split: MSE, documented", "loss", "loss after epoch 50", ("0.4669",)
    ),
    Documented(
        "retrieval/random split: MSE, documented", "val_loss", "validation loss", ("0.4743",)
    ),
    Documented(
        "multi_task/documented, multi-task, stars",
        "accuracy",
        "top-10 accuracy",
        ("0.0170", "0.0186", "0.0199"),
    ),
    Documented(
        "multi_task/documented, multi-task, stars", "rmse", "RMSE", ("0.2501", "0.2503", "0.2508")
    ),
    *(
        Documented(f"multi_task/documented, {kind}, stars", key, f"{what}, closing table", (value,))
        for kind, accuracy, error in (
            ("rating-specialised", "0.005", "0.26"),
            ("retrieval-specialised", "0.020", "0.78"),
            ("multi-task", "0.022", "0.25"),
        )
        for key, what, value in (
            ("accuracy", "top-10 accuracy", accuracy),
            ("rmse", "RMSE", error),
        )
    ),
)
