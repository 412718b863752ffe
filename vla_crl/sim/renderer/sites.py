"""Sites as geoms: the renderers draw no sites, but some mean something, as a glowing burner."""

from collections.abc import Sequence

import mujoco

from vla_crl.errors import unknown_name

ORIENTATIONS = ("type", "euler", "axisangle", "xyaxes", "zaxis")
"""Other ways than a quaternion in which a model file may say how something is turned."""


def add_site_geoms(spec: mujoco.MjSpec, names: Sequence[str], group: int) -> list[str]:
    """Give a drawn model a geom in the place of each site, for it to be shown or hidden.

    It touches nothing and weighs nothing. Whoever draws hides it by a pose that is not finite.

    Args:
        spec: Changed; geoms that come after the new ones get other numbers.
        names: Of the sites.
        group: Geom group of the new geoms.

    Returns:
        Names of the geoms, in the same order.

    Raises:
        ConfigError: A site does not exist.
    """
    sites = {site.name: site for site in spec.sites}
    geoms = []
    for name in names:
        if name not in sites:
            raise unknown_name("add_site_geoms", "site", name, sites)
        site = sites[name]
        geom = site.parent.add_geom(
            name=f"site {name}",
            type=site.type,
            pos=site.pos,
            quat=site.quat,
            size=site.size,
            rgba=(*site.rgba[:3], 1.0),
            group=group,
            contype=0,
            conaffinity=0,
            mass=0.0,
        )
        for kind in ORIENTATIONS:
            setattr(geom.alt, kind, getattr(site.alt, kind))
        geoms.append(geom.name)
    return geoms
