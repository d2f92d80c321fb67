"""The chapter's SASRec as a hand-written JAX training loop: what `fit` is measured against.

The same network, loss, optimizer and running average of the weights, without Keras: one compiled
step that owns its state, over arrays that were placed on the device once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PADDING_ID = 0
Weights = dict[str, jax.Array]


def weights_of(model: Any) -> Weights:
    """The trainable weights of a built SASRec of the chapter, copied, by short names.

    `movies`, `positions`, `norm/gamma` and so on; those of block `n` begin with `n/`.
    """
    named = {"movies": model.movies.embeddings, "positions": model.positions.embeddings}
    named |= {f"norm/{weight.name}": weight for weight in model.norm.weights}
    for number, block in enumerate(model.blocks):
        for weight in block.trainable_variables:
            named[f"{number}/" + "/".join(weight.path.split("/")[-2:])] = weight
    if len(named) != len(model.trainable_variables):
        raise ValueError(
            f"the model has {len(model.trainable_variables)} weights, the bare loop knows "
            f"{len(named)}: it no longer is the chapter's network"
        )
    return {name: jnp.array(np.asarray(weight)) for name, weight in named.items()}


def _dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    if rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)


def _layer_norm(x: jax.Array, weights: Weights, name: str, epsilon: float) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    scaled = (x - mean) * jax.lax.rsqrt(variance + epsilon)
    return scaled * weights[f"{name}/gamma"] + weights[f"{name}/beta"]


def _attention(
    x: jax.Array, weights: Weights, name: str, allowed: jax.Array, rate: float, key: jax.Array
) -> jax.Array:
    """Multi-head attention of `(B, L, d)` where `allowed`, `(B, L, L)`."""

    def project(part: str) -> jax.Array:
        kernel = weights[f"{name}/{part}/kernel"]  # (d, h, k)
        return jnp.einsum("bld,dhk->bhlk", x, kernel) + weights[f"{name}/{part}/bias"][:, None]

    query, key_vectors, value = project("query"), project("key"), project("value")
    scores = jnp.einsum("bhtk,bhsk->bhts", query / np.sqrt(query.shape[-1]), key_vectors)
    shares = jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e9))  # (B, h, L, L)
    mixed = jnp.einsum("bhts,bhsk->bthk", _dropout(shares, rate, key), value)
    kernel = weights[f"{name}/attention_output/kernel"]  # (h, k, d)
    return jnp.einsum("bthk,hkd->btd", mixed, kernel) + weights[f"{name}/attention_output/bias"]


def states(
    weights: Weights, config: dict[str, Any], inputs: jax.Array, key: jax.Array
) -> jax.Array:
    """The network: `(B, L)` ids to `(B, L, d)` states, with the dropout that `key` draws."""
    rate, length = config["dropout"], inputs.shape[1]
    real = inputs != PADDING_ID  # (B, L)
    place = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    allowed = real[:, None, :] & np.tril(np.ones((length, length), bool))  # (B, L, L)
    keys = jax.random.split(key, 1 + 3 * config["blocks"])
    x = weights["movies"][inputs] * config["width"] ** 0.5 + weights["positions"][place]
    x = _dropout(x, rate, keys[0])
    for number in range(config["blocks"]):
        for_attention, after_attention, after_network = keys[1 + 3 * number : 4 + 3 * number]
        y = _layer_norm(x, weights, f"{number}/self_attention_layer_norm", 1e-5)
        y = _attention(y, weights, str(number), allowed, rate, for_attention)
        x = x + _dropout(y, rate, after_attention)
        y = _layer_norm(x, weights, f"{number}/feedforward_layer_norm", 1e-5)
        for layer, activation in [
            ("feedforward_intermediate_dense", jax.nn.relu),
            ("feedforward_output_dense", lambda hidden: hidden),
        ]:
            dense = f"{number}/{layer}"
            y = activation(y @ weights[f"{dense}/kernel"] + weights[f"{dense}/bias"])
        x = x + _dropout(y, rate, after_network)
    return _layer_norm(x, weights, "norm", 1e-3)


def loss(
    weights: Weights, config: dict[str, Any], inputs: jax.Array, targets: jax.Array, key: jax.Array
) -> jax.Array:
    """Cross-entropy over what is not watched yet, as in the chapter; a scalar."""
    until = np.tril(np.ones((inputs.shape[1],) * 2, bool))  # (L, L): position s is not after t
    same = inputs[:, :, None] == inputs[:, None, :]  # (B, L, L)
    first = (inputs != PADDING_ID) & ~(same & np.tril(until, -1)).any(-1)  # (B, L)
    again = ((targets[:, :, None] == inputs[:, None, :]) & until).any(-1)  # (B, L)
    real = ((targets != PADDING_ID) & ~again).astype("float32")
    h = states(weights, config, inputs, key)  # (B, L, d)
    total = jax.nn.logsumexp(h @ weights["movies"][1:].T, axis=-1)  # (B, L)
    read = jnp.einsum("btd,bsd->bts", h, weights["movies"][inputs]) - total[..., None]
    read = jnp.exp(jnp.where(first[:, None, :] & until, read, -1e9))
    total = total + jnp.log1p(-jnp.minimum(read.sum(-1), 0.9999))
    each = total - jnp.einsum("btd,btd->bt", h, weights["movies"][targets])
    return (each * real).sum() / jnp.maximum(real.sum(), 1.0)


def adam(
    weights: Weights,
    gradients: Weights,
    moments: dict[str, Weights],
    number: jax.Array,
    rate: float,
    average: float,
) -> tuple[Weights, dict[str, Weights]]:
    """One step of Adam, and of the running average of the weights where `average` is above 0.

    Args:
        weights: before the step.
        gradients: of the loss.
        moments: `first`, `second` and `average`, each like `weights`.
        number: of the step, from 1.
        rate: the learning rate.
        average: momentum of the running average.
    """
    scale = rate * jnp.sqrt(1 - 0.999**number) / (1 - 0.9**number)
    keep = jnp.where(number > 1, average, 0.0)
    first = jax.tree.map(lambda m, g: m + 0.1 * (g - m), moments["first"], gradients)
    second = jax.tree.map(lambda v, g: v + 0.001 * (g * g - v), moments["second"], gradients)
    weights = jax.tree.map(
        lambda w, m, v: w - scale * m / (jnp.sqrt(v) + 1e-7), weights, first, second
    )
    moments = {"first": first, "second": second, "average": moments["average"]}
    if average:
        moments["average"] = jax.tree.map(
            lambda a, w: keep * a + (1 - keep) * w, moments["average"], weights
        )
    return weights, moments


class BareLoop:
    """A training run without Keras, from the weights of a built Keras model.

    Args:
        model: the chapter's SASRec, built; it stays as it is.
        inputs: `(n, L)` int32, placed on the device once, as are the targets.
        targets: `(n, L)` int32.
        batch_size: rows a step.
        rate: the learning rate.
        average: momentum of the running average of the weights; 0 keeps none.
        seed: of the order of the rows and of dropout.
    """

    def __init__(
        self,
        model: Any,
        inputs: np.ndarray,
        targets: np.ndarray,
        *,
        batch_size: int,
        rate: float,
        average: float = 0.0,
        seed: int = 42,
    ) -> None:
        self.rows = len(inputs)
        self.batch_size = batch_size
        self.order = np.random.default_rng(seed)
        self._arrays = jnp.asarray(inputs), jnp.asarray(targets)
        weights = weights_of(model)
        empty = jax.tree.map(jnp.zeros_like, weights)
        moments = {
            "first": empty,
            "second": jax.tree.map(jnp.copy, empty),
            "average": jax.tree.map(jnp.copy, weights) if average else {},
        }
        self._state = weights, moments, jnp.ones((), "float32"), jax.random.key(seed)
        self._step = _compiled_step(dict(model.config), rate, average)

    def step(self, rows: np.ndarray) -> jax.Array:
        """One gradient step on these rows; the loss before it, which may still be computing."""
        self._state, value = self._step(self._state, self._arrays, jnp.asarray(rows))
        return value

    def averaged(self) -> Weights:
        """The running average of the weights, by short names."""
        return {name: jnp.copy(weight) for name, weight in self._state[1]["average"].items()}

    def epoch(self) -> tuple[int, float]:
        """One pass over all full batches, in a new order: steps taken and seconds."""
        started = time.perf_counter()
        order = self.order.permutation(self.rows)
        steps = self.rows // self.batch_size
        for number in range(steps):
            value = self.step(order[number * self.batch_size : (number + 1) * self.batch_size])
        jax.block_until_ready((self._state, value))
        return steps, time.perf_counter() - started


def _compiled_step(config: dict[str, Any], rate: float, average: float) -> Callable[..., Any]:
    def step(state: Any, arrays: Any, rows: jax.Array) -> Any:
        weights, moments, number, key = state
        key, for_dropout = jax.random.split(key)
        inputs, targets = (array[rows] for array in arrays)
        value, gradients = jax.value_and_grad(loss)(weights, config, inputs, targets, for_dropout)
        weights, moments = adam(weights, gradients, moments, number, rate, average)
        return (weights, moments, number + 1, key), value

    return jax.jit(step, donate_argnums=0)
