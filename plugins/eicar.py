"""The file that every virus scanner knows: one that does not flag it scans nothing."""


def eicar() -> bytes:
    """Return the test file of all virus scanners, in pieces so that this file is not one."""
    return b"X5O!P%@AP[4\\PZX54(P^)7CC)7}" + b"$EICAR-STANDARD" + b"-ANTIVIRUS-TEST-FILE!$H+H*"
