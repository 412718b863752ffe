"""Which learners there are: the package's, and those in the folders of VLA_CRL_PATH."""

import sys

from vla_crl.algos.learner import Learner
from vla_crl.algos.learners import LEARNERS, find_learner
from vla_crl.continual.own_methods import own_methods


def list_learners() -> list[dict[str, str]]:
    """Return name, description and file of all: ours, then the user's own, which are not run."""
    rows = [(name, find_learner(name)) for name in LEARNERS]
    told = [(name, c.__doc__ or "", sys.modules[c.__module__].__file__) for name, c in rows]
    ours = {target.partition(":")[2] for target in LEARNERS.values()} | {Learner.__name__}
    own, broken = own_methods(ours)
    told += [(name, each.description, each.file) for name, each in own.items()]
    told += [(file.stem, f"cannot be read: {why}", file) for file, why in broken.items()]
    return [
        {"name": name, "description": text.partition("\n")[0], "file": str(file)}
        for name, text, file in told
    ]
