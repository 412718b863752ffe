"""MuJoCo's C functions for compiled code.

Numba resolves the symbols by name in the shared library that the `mujoco` package has loaded, so
kernels that call them release the GIL and can be cached on disk.
"""

import ctypes
import os
import sys
from pathlib import Path

import llvmlite.binding
import mujoco
from numba import types
from numba.core.extending import intrinsic

_LIBRARY = Path(mujoco.__path__[0]) / f"libmujoco.so.{mujoco.__version__}"
llvmlite.binding.load_library_permanently(str(_LIBRARY))


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def _end_process(message: bytes) -> None:
    """Say why compiled code cannot go on; MuJoCo's own way out may end in a segmentation fault.

    It must not return, and no exception passes through MuJoCo. Calls from Python do not come here.
    """
    sys.stdout.flush()
    sys.stderr.write(
        f"vla-crl: MuJoCo cannot go on with the scene: {message.decode(errors='replace')}\n"
        'Where memory is short, write more into its MJCF: <size memory="512M"/>\n'
    )
    sys.stderr.flush()
    os._exit(2)


_HANDLER = ctypes.c_void_p.in_dll(ctypes.CDLL(str(_LIBRARY)), "mju_user_error")
_HANDLER.value = ctypes.cast(_end_process, ctypes.c_void_p).value

_POINTER = types.uintp

mj_step = types.ExternalFunction("mj_step", types.void(_POINTER, _POINTER))
mj_step1 = types.ExternalFunction("mj_step1", types.void(_POINTER, _POINTER))
mj_step2 = types.ExternalFunction("mj_step2", types.void(_POINTER, _POINTER))
mj_forward = types.ExternalFunction("mj_forward", types.void(_POINTER, _POINTER))
mj_jacobian_of_site = types.ExternalFunction(
    "mj_jacSite", types.void(_POINTER, _POINTER, _POINTER, _POINTER, types.intc)
)
mj_reset_data = types.ExternalFunction("mj_resetData", types.void(_POINTER, _POINTER))
mj_kinematics = types.ExternalFunction("mj_kinematics", types.void(_POINTER, _POINTER))
mj_com_pos = types.ExternalFunction("mj_comPos", types.void(_POINTER, _POINTER))
mj_camera_light = types.ExternalFunction("mj_camlight", types.void(_POINTER, _POINTER))
mj_set_state = types.ExternalFunction(
    "mj_setState", types.void(_POINTER, _POINTER, _POINTER, types.intc)
)
mj_get_state = types.ExternalFunction(
    "mj_getState", types.void(_POINTER, _POINTER, _POINTER, types.intc)
)
mj_update_sleep = types.ExternalFunction("mj_updateSleep", types.void(_POINTER, _POINTER))
mj_contact_force = types.ExternalFunction(
    "mj_contactForce", types.void(_POINTER, _POINTER, types.intc, _POINTER)
)


@intrinsic
def as_int_pointer(typing_context, address):
    """Turn an integer address into an `int*` that `numba.carray` accepts."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.uintp), codegen


@intrinsic
def as_long_pointer(typing_context, address):
    """Turn an integer address into an `int64_t*` that `numba.carray` accepts."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(types.uintp), codegen


@intrinsic
def as_double_pointer(typing_context, address):
    """Turn an integer address into a `double*` that `numba.carray` accepts."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.uintp), codegen
