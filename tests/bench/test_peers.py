import pytest

from vla_crl.bench import peers
from vla_crl.errors import ConfigError

KNOWN = ("egl", "osmesa", "warp")


def test_all_peers_run_unless_some_are_named():
    assert peers.choose_peers("bench", [], KNOWN) == KNOWN
    assert peers.choose_peers("bench", ["warp", "egl"], KNOWN) == ("egl", "warp")


def test_an_unknown_peer_names_the_nearest():
    with pytest.raises(
        ConfigError, match="bench: unknown peer 'wrap'. Did you mean 'warp'\\? Known: egl, os"
    ):
        peers.choose_peers("bench", ["egl", "wrap"], KNOWN)


def test_a_missing_package_names_its_extra():
    peers.require_extra("bench", "numpy", "numpy", "none")
    with pytest.raises(
        ConfigError,
        match=r"peer 'warp' needs the package no_such_package: pip install --editable '.\[warp\]'",
    ):
        peers.require_extra("bench", "warp", "no_such_package", "warp")


@pytest.mark.parametrize("backend", ["osmesa", None])
def test_a_missing_gl_backend_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, backend: str | None
):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(peers, "draws_frames", lambda name: False)
    with pytest.raises(
        ConfigError,
        match=f"bench: peer 'p' needs .* draws nothing with MUJOCO_GL={backend or 'egl'}: apt-get",
    ):
        peers.require_gl("bench", "p", backend)
    monkeypatch.setattr(peers, "draws_frames", lambda name: name == (backend or "egl"))
    peers.require_gl("bench", "p", backend)
