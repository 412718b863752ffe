import importlib
import pkgutil

from numba.core.dispatcher import Dispatcher

from vla_crl.sim import renderer


def test_what_computes_pixels_is_part_of_the_entry_point_so_that_pictures_repeat() -> None:
    # A function that returns arrays is its own; what it computes is copied or zero.
    own = {"render_frames", "segment_frames", "new_workspace", "look_of"}
    names = [
        f"{renderer.__name__}.{module.name}" for module in pkgutil.iter_modules(renderer.__path__)
    ]
    functions = [f for name in names for f in vars(importlib.import_module(name)).values()]
    compiled = [f for f in functions if isinstance(f, Dispatcher) and f.py_func.__name__ not in own]
    assert len(compiled) > 50
    for function in compiled:
        assert function.targetoptions.get("forceinline"), function.py_func.__name__
