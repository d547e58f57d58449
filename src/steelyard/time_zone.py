"""Time zones from the tzdata package, never from the machine: they are the same everywhere."""

import re
from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z][A-Za-z0-9_+-]{0,31}){0,2}")


@cache
def load_time_zone(key: str) -> ZoneInfo:
    """The IANA zone of this name, as 'Asia/Shanghai'; raises ValueError if there is none."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not the name of a time zone")
    file = resources.files("tzdata").joinpath("zoneinfo", *key.split("/"))
    if not file.is_file():
        raise ValueError(f"there is no time zone {key!r}; write an IANA name such as Asia/Shanghai")
    with file.open("rb") as content:
        return ZoneInfo.from_file(content, key=key)
