"""What ends an episode, and how worlds whose episode does not go on are kept as they are.

MuJoCo Warp steps all worlds at once. `kept` holds the state that each world has between chunks;
after every control step a world that does not act, or acts no longer, is put back to it.
"""

import warp as wp

from vla_crl.sim import outcomes
from vla_crl.sim.warp.kernels.predicates import Goals, Poses, goal_reached

wp.set_module_options({"enable_backward": False})

RUNNING, SUCCESS = wp.constant(outcomes.RUNNING), wp.constant(outcomes.SUCCESS)
TIME_LIMIT, DIVERGED = wp.constant(outcomes.TIME_LIMIT), wp.constant(outcomes.DIVERGED)
MAX_SPEED = wp.constant(outcomes.MAX_SPEED)


@wp.struct
class Physics:
    """Everything the next step depends on: [N, ...], as in MuJoCo Warp's data."""

    time: wp.array(dtype=float)
    qpos: wp.array2d(dtype=float)
    qvel: wp.array2d(dtype=float)
    warmstart: wp.array2d(dtype=float)
    ctrl: wp.array2d(dtype=float)
    mocap_pos: wp.array2d(dtype=wp.vec3)
    mocap_quat: wp.array2d(dtype=wp.quat)


@wp.struct
class Progress:
    """Where the episodes stand: [N].

    Attributes:
        acting: 1 where the episode runs on within the current chunk.
        task: Task index.
        num_steps: Control steps since the episode began.
        outcome: Outcome code.
        fastest: Degree of freedom that moved too fast, of a diverged world.
        speed: Its velocity, m/s or rad/s.
    """

    acting: wp.array(dtype=int)
    task: wp.array(dtype=int)
    num_steps: wp.array(dtype=int)
    outcome: wp.array(dtype=int)
    fastest: wp.array(dtype=int)
    speed: wp.array(dtype=float)


@wp.func
def _copy(source: Physics, row: int, target: Physics, world: int):
    target.time[world] = source.time[row]
    for i in range(target.qpos.shape[1]):
        target.qpos[world, i] = source.qpos[row, i]
    for i in range(target.qvel.shape[1]):
        target.qvel[world, i] = source.qvel[row, i]
        target.warmstart[world, i] = source.warmstart[row, i]
    for i in range(target.ctrl.shape[1]):
        target.ctrl[world, i] = source.ctrl[row, i]
    for i in range(target.mocap_pos.shape[1]):
        target.mocap_pos[world, i] = source.mocap_pos[row, i]
        target.mocap_quat[world, i] = source.mocap_quat[row, i]


@wp.kernel
def begin(
    worlds: wp.array(dtype=int),
    initial: Physics,
    initial_states: wp.array2d(dtype=wp.float64),
    current: Physics,
    kept: Physics,
    states: wp.array2d(dtype=wp.float64),
):
    """Write initial states [B, ...] and controller states [B, R] into `worlds` [B]."""
    k = wp.tid()
    _copy(initial, k, current, worlds[k])
    _copy(initial, k, kept, worlds[k])
    for i in range(states.shape[1]):
        states[worlds[k], i] = initial_states[k, i]


@wp.kernel
def judge(
    goals: Goals,
    horizon: int,
    poses: Poses,
    current: Physics,
    kept: Physics,
    progress: Progress,
):
    """End the control step of every world; see `stepping._step_slot`."""
    world = wp.tid()
    if progress.acting[world] == 0:
        _copy(kept, world, current, world)
        return
    progress.num_steps[world] += 1
    outcome = RUNNING
    dof = _too_fast(current.qvel, world)
    if dof >= 0:
        outcome = DIVERGED
        progress.fastest[world] = dof
        progress.speed[world] = wp.abs(current.qvel[world, dof])
    elif goal_reached(goals, progress.task[world], poses, world):
        outcome = SUCCESS
    elif progress.num_steps[world] >= horizon:
        outcome = TIME_LIMIT
    progress.outcome[world] = outcome
    if outcome == DIVERGED:  # the world keeps its last healthy state
        _copy(kept, world, current, world)
    elif outcome != RUNNING:
        _copy(current, world, kept, world)
    if outcome != RUNNING:
        progress.acting[world] = 0


@wp.kernel
def keep(current: Physics, kept: Physics):
    """End the chunk: what worlds have now is what they are put back to."""
    world = wp.tid()
    _copy(current, world, kept, world)


@wp.func
def _too_fast(qvel: wp.array2d(dtype=float), world: int) -> int:
    """Return the first degree of freedom beyond `MAX_SPEED` or NaN, or -1."""
    for i in range(qvel.shape[1]):
        if not wp.abs(qvel[world, i]) < MAX_SPEED:
            return i
    return -1


@wp.kernel
def watch(num_rows: wp.array(dtype=int), num_contacts: wp.array(dtype=int),
          num_pairs: wp.array(dtype=int), peaks: wp.array(dtype=int)):  # fmt: skip
    """Remember the greatest numbers of constraint rows of a world, and of contacts of all."""
    world = wp.tid()
    wp.atomic_max(peaks, 0, num_rows[world])
    if world == 0:
        wp.atomic_max(peaks, 1, wp.max(num_contacts[0], num_pairs[0]))
