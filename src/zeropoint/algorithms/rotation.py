"""Rotation (alias `quarot`): multiply hidden states by a random Hadamard matrix, to spread outlier channels evenly.

Idea (Ashkboos et al. 2024, "QuaRot", arXiv:2404.00456; R1 and R2 of Liu et al. 2024, "SpinQuant", arXiv:2405.16406):
RMSNorm without its gain commutes with rotations. So the hidden states between the transformer blocks may be rotated by
any orthogonal Q. The layers that write hidden states are multiplied by Q, the layers that read them by Q transposed,
and the gains of the norms are multiplied into the reading layers. The values of each attention head can be rotated
too, between the value projection and the output projection. A random Hadamard matrix spreads a large channel over all
channels. The model's function stays the same; the channels of activations and weights become similar in size, which
suits both 8-bit inputs and weight grids.

All of this happens in the weights, before the model runs. So a rotation cannot pass a non-linearity: the input of the
down projection is not rotated, although the SmolLM2 models have their largest values there.

Cost: two products with a `[width, width]` matrix for each weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.values.arrays import Floats

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Options:
    """`residual`: rotate the hidden states between the blocks. `heads`: rotate the values of attention."""

    residual: bool = True
    heads: bool = True


def rotate(width: int, seed: int) -> Floats:
    """Return a random orthogonal float32 matrix `[width, width]`.

    The matrix is a Hadamard matrix with random row signs if Sylvester's and Paley's constructions give one of this
    order (such as 576 = 16 * 36 and 896 = 32 * 28), else the Q factor of a random Gaussian matrix.
    """
    random = np.random.default_rng(seed)
    hadamard = hadamard_matrix(width)
    if hadamard is None:
        orthogonal, upper = np.linalg.qr(random.standard_normal((width, width)))
        return np.asarray(orthogonal * np.sign(upper.diagonal()), np.float32)
    signs = random.choice([-1.0, 1.0], width)
    return np.asarray(signs[:, None] * hadamard / np.sqrt(width), np.float32)


def hadamard_matrix(order: int) -> NDArray[np.int8] | None:
    """Return a Hadamard matrix int8 `[order, order]` (orthogonal rows of 1 and -1), or None if none is known here."""
    if order == 1:
        return np.ones((1, 1), np.int8)
    matrix = _paley(order)
    if matrix is None and order % 2 == 0 and (half := hadamard_matrix(order // 2)) is not None:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.int8), half)
    return matrix


def _paley(order: int) -> NDArray[np.int8] | None:
    """Return Paley's matrix: order q + 1 for primes q = 3 mod 4, order 2 q + 2 for primes q = 1 mod 4; else None."""
    if order % 4:
        return None
    if _is_prime(order - 1):
        core = np.pad(_residues(order - 1), ((1, 0), (1, 0)))
        core[0, 1:], core[1:, 0] = 1, -1
        return (core + np.eye(order)).astype(np.int8)
    half = order // 2
    if half % 4 == 2 and _is_prime(half - 1):
        core = np.pad(_residues(half - 1), ((1, 0), (1, 0)))
        core[0, 1:], core[1:, 0] = 1, 1
        ones, corner = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        return (np.kron(core, ones) + np.kron(np.eye(half), corner)).astype(np.int8)
    return None


def _residues(prime: int) -> NDArray[np.int8]:
    """Return the matrix whose `[i, j]` is 0 if i = j, 1 if i - j is a square modulo the prime, else -1."""
    character = np.full(prime, -1, np.int8)
    character[np.arange(1, prime) ** 2 % prime] = 1
    character[0] = 0
    number = np.arange(prime)
    return np.asarray(character[(number[:, None] - number[None]) % prime])


def _is_prime(number: int) -> bool:
    """Return whether `number` is prime."""
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))
