"""Made-up artefacts: tiny ONNX graphs whose answers can be computed by hand."""

import numpy as np
import pandas as pd
from onnx import TensorProto, helper, numpy_helper

from rectutor import artefact

SIZE, WIDTH, CONTEXT, CANDIDATES = 60, 8, 5, 20


def model(nodes, given, kind, given_shape, made_shape, **constants):
    """The bytes of an ONNX model from `given` to `made`."""
    graph = helper.make_graph(
        nodes,
        "made_up",
        [helper.make_tensor_value_info(given, kind, given_shape)],
        [helper.make_tensor_value_info("made", TensorProto.FLOAT, made_shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def encoder(table, kind=TensorProto.INT32):
    """The state is the sum of the history's rows."""
    nodes = [
        helper.make_node("Gather", ["table", "history"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["made"], keepdims=0),
    ]
    axis = np.array([1], np.int64)
    shape = ["B", table.shape[1]]
    return model(nodes, "history", kind, ["B", CONTEXT], shape, table=table, axis=axis)


def ranker(weights):
    """The score is a weighted sum of the features."""
    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["column"]),
        helper.make_node("Squeeze", ["column", "axis"], ["made"]),
    ]
    weights = np.asarray(weights, np.float32)[:, None]
    axis = np.array([2], np.int64)
    shape = ["B", "K", len(weights)]
    return model(
        nodes, "features", TensorProto.FLOAT, shape, ["B", "K"], weights=weights, axis=axis
    )


def ranker_weights(seed=0):
    return np.random.default_rng([seed, 1]).standard_normal(len(artefact.FEATURES))


def parts(seed=0, size=SIZE, width=WIDTH):
    """What `artefact.write` takes; ids are 10, 20, 30 and so on."""
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((size + 1, width)).astype(np.float32)
    items[0] = 0
    neighbours = rng.standard_normal((size + 1, size + 1)).astype(np.float32)
    numbers = np.arange(1, size + 1)
    return {
        "encoder": encoder(items),
        "items": items,
        "neighbours": neighbours,
        "decay": 3.0,
        "ranker": ranker(ranker_weights(seed)),
        "catalogue": pd.DataFrame(
            {
                "id": 10 * numbers,
                "title": [f"Movie {number} (1999)" for number in numbers],
                "count": rng.integers(1, 500, size),
            }
        ),
        "context": CONTEXT,
        "candidates": CANDIDATES,
        "index_kind": "HNSW8,Flat",
        "metrics": {"NDCG@10": 0.1},
        "data": {"name": "made up", "seed": seed},
    }
