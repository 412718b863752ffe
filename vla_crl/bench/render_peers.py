"""How fast the project's renderer draws a suite, beside the renderers that people use."""

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from vla_crl.bench.peers import choose_peers, require_extra, require_gl
from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.bench.render import own_turn, render_goal, settled_states
from vla_crl.bench.turns import TurnProcess
from vla_crl.sim.backends import find_suite

WHERE = "bench render --peers"
RENDER_PEERS = {
    "egl": "mujoco.Renderer, EGL",
    "osmesa": "mujoco.Renderer, OSMesa",
    "warp": "MuJoCo Warp, CPU",
}


def bench_render_peers(
    suite: str = "tabletop_object",
    peers: Sequence[str] = (),
    *,
    sizes: Sequence[int] = (64, 128, 224),
    num_frames: int = 2000,
    num_peer_frames: int = 64,
    num_repeats: int = 3,
) -> list[BenchRecord]:
    """Measure frames per second of initial states of a suite, from its cameras in turn.

    Every peer has a process of its own, since MuJoCo takes its GL backend when it is imported.
    Turns alternate; nothing else of the benchmark computes meanwhile.

    Args:
        suite: Its name in the catalogue; its first scene is drawn.
        peers: Some of `RENDER_PEERS`; all by default.
        sizes: Heights, equal to the widths, in pixels.
        num_frames: Images the batch renderer draws in a turn, all cameras counted.
        num_peer_frames: Images a peer draws in a turn.
        num_repeats: Timed turns of each; the median counts.

    Returns:
        One record per size and peer.

    Raises:
        ConfigError: An unknown peer, or one that cannot run here.
    """
    chosen = choose_peers(WHERE, peers, RENDER_PEERS)
    for peer in chosen:
        if peer == "warp":
            require_extra(WHERE, peer, "mujoco_warp", "warp")
        else:
            require_gl(WHERE, peer, peer)
    loaded = find_suite(suite)
    states = settled_states(loaded, num_frames)
    records: list[BenchRecord] = []
    for size in sizes:
        with ExitStack() as stack:
            turns = [stack.enter_context(own_turn(loaded, states, size, num_frames))]
            for peer in chosen:
                arguments = [peer, loaded.name, str(size), str(num_peer_frames)]
                # MuJoCo sets PYOPENGL_PLATFORM to fit, but keeps one that is inherited.
                backend = {} if peer == "warp" else {"MUJOCO_GL": peer, "PYOPENGL_PLATFORM": ""}
                child = TurnProcess("vla_crl.bench.render_turns", arguments, backend)
                turns.append(stack.enter_context(child).turn)
            for turn in turns:
                turn()  # compiles, or loads from the disk
            rates = [[turn() for turn in turns] for _ in range(num_repeats)]
        value, *peer_values = (median(column) for column in zip(*rates, strict=True))
        for peer, peer_value in zip(chosen, peer_values, strict=True):
            name, label = f"render.{loaded.name}.{size}x{size}.vs_{peer}", RENDER_PEERS[peer]
            goal = render_goal(states[0].model, size) if peer != "warp" else None
            records.append(against_peer(name, value, "frames/s", label, peer_value, goal=goal))
    return records
