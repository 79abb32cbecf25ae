"""Rotation: turn the spaces in which a model hands vectors on, so that no channel is larger than the rest.

Idea (Ashkboos et al. 2024, "QuaRot", arXiv:2404.00456; R1 and R2 of Liu et al. 2024, "SpinQuant", arXiv:2405.16406): an
RMSNorm without its gain does not notice a rotation of its input. So the hidden states between the blocks may be rotated
by any orthogonal Q: what writes them is multiplied by Q, what reads them by Q transposed, and the gains of the norms go
into what reads. The values of each attention head may be rotated between the layer that makes them and the one that
takes them. A random Hadamard matrix spreads a large channel over all of them. The function stays; the sizes of
activations (for 8-bit inputs) and of weights (for their grids) become alike.

Nothing is done while the model runs, so what lies behind a non-linearity stays as it was: the input of the down
projection, where this model family has its largest values.

Cost: two products with a `[width, width]` matrix for each weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.values.qtensor import Floats

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Options:
    """`residual`: rotate the hidden states between the blocks. `heads`: rotate the values of attention."""

    residual: bool = True
    heads: bool = True


def rotate(width: int, seed: int) -> Floats:
    """An orthogonal matrix `[width, width]`: a Hadamard matrix whose rows have random signs, where Sylvester's and
    Paley's constructions give one (576 is 16 times 36, 896 is 32 times 28), else a random one of no structure."""
    random = np.random.default_rng(seed)
    hadamard = hadamard_matrix(width)
    if hadamard is None:
        orthogonal, upper = np.linalg.qr(random.standard_normal((width, width)))
        return np.asarray(orthogonal * np.sign(upper.diagonal()), np.float32)
    signs = random.choice([-1.0, 1.0], width)
    return np.asarray(signs[:, None] * hadamard / np.sqrt(width), np.float32)


def hadamard_matrix(order: int) -> NDArray[np.int8] | None:
    """Rows of 1 and -1, each orthogonal to the others; None where no construction here has that order."""
    if order == 1:
        return np.ones((1, 1), np.int8)
    found = _paley(order)
    if found is None and order % 2 == 0 and (half := hadamard_matrix(order // 2)) is not None:
        found = np.kron(np.array([[1, 1], [1, -1]], np.int8), half)
    return found


def _paley(order: int) -> NDArray[np.int8] | None:
    """Paley's matrices, of order q + 1 for primes q = 3 mod 4, and of 2 q + 2 for primes q = 1 mod 4."""
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
    """`[i, j]`: 1 where i - j is a square modulo the prime, 0 where it is 0, else -1."""
    character = np.full(prime, -1, np.int8)
    character[np.arange(1, prime) ** 2 % prime] = 1
    character[0] = 0
    number = np.arange(prime)
    return np.asarray(character[(number[:, None] - number[None]) % prime])


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))
