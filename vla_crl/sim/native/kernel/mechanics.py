"""What an episode may change of the model itself: masses and friction."""

from typing import NamedTuple

import mujoco
import numpy as np
from numba import njit


class Mechanics(NamedTuple):
    """Numbers of a model, or views of them that can be written.

    Attributes:
        body_mass: [bodies] kg.
        body_subtreemass: [bodies] kg.
        body_inertia: [bodies, 3] kg m^2.
        body_invweight0: [bodies, 2] mean inverse weight, by which MuJoCo scales constraints.
        dof_invweight0: [nv] likewise.
        dof_M0: [nv] diagonal of the inertia matrix in the initial posture, used likewise.
        geom_friction: [geoms, 3].
    """

    body_mass: np.ndarray
    body_subtreemass: np.ndarray
    body_inertia: np.ndarray
    body_invweight0: np.ndarray
    dof_invweight0: np.ndarray
    dof_M0: np.ndarray  # noqa: N815 - as MuJoCo calls it
    geom_friction: np.ndarray


def mechanics_of(model: mujoco.MjModel) -> Mechanics:
    """Return views into a model."""
    return Mechanics(*(getattr(model, name) for name in Mechanics._fields))


class Objects(NamedTuple):
    """The things with a free joint.

    Attributes:
        body: [objects] body ids.
        dof: [objects] the first of the six degrees of freedom of each.
    """

    body: np.ndarray
    dof: np.ndarray


@njit(nogil=True)
def vary(nominal, mechanics, objects, mass_gain, friction_gain):
    """Write what an episode drew into a thread's model.

    A free body alone in its tree has M = m diag(1, 1, 1, I/m), so its inverse weights are inversely
    proportional to its mass: what `mj_setConst` would compute.

    Args:
        nominal: `Mechanics` as they are in the file.
        mechanics: `Mechanics`, written.
        objects: `Objects`.
        mass_gain: [objects] or longer.
        friction_gain: Factor on every geom's friction.
    """
    for k in range(objects.body.shape[0]):
        body, dof, gain = objects.body[k], objects.dof[k], mass_gain[k]
        mechanics.body_mass[body] = gain * nominal.body_mass[body]
        mechanics.body_subtreemass[body] = gain * nominal.body_subtreemass[body]
        for i in range(3):
            mechanics.body_inertia[body, i] = gain * nominal.body_inertia[body, i]
        for i in range(2):
            mechanics.body_invweight0[body, i] = nominal.body_invweight0[body, i] / gain
        for i in range(6):
            mechanics.dof_invweight0[dof + i] = nominal.dof_invweight0[dof + i] / gain
            mechanics.dof_M0[dof + i] = gain * nominal.dof_M0[dof + i]
    for geom in range(nominal.geom_friction.shape[0]):
        for i in range(3):
            mechanics.geom_friction[geom, i] = friction_gain * nominal.geom_friction[geom, i]
