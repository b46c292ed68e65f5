"""Who else may change what is written: the umask of the environment, where sshd sets another."""

import os
import re
from collections.abc import Mapping

from ganbert.errors import ConfigError

UMASK_VARIABLE = "GANBERT_UMASK"


def umask_of(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the umask that is asked for; None if none is.

    Parameters
    ----------
    environment : of the process

    Raises
    ------
    ConfigError
        If it is no octal number of three digits.
    """
    text = environment.get(UMASK_VARIABLE)
    if text is None:
        return None
    if not re.fullmatch("0?[0-7]{3}", text):
        raise ConfigError(
            UMASK_VARIABLE,
            expected="three octal digits",
            found=repr(text),
            remedy="write 002, say, or leave it out",
        )
    return int(text, 8)


def take_umask() -> None:
    """Take the umask that $GANBERT_UMASK asks for: 002 lets the group change what is written.

    Raises
    ------
    ConfigError
        If it is no octal number of three digits.
    """
    umask = umask_of()
    if umask is not None:
        os.umask(umask)
