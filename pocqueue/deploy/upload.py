"""A file that is put on a server as a whole, by SFTP."""

from __future__ import annotations

import posixpath
from contextlib import suppress

import asyncssh

from pocqueue.deploy.errors import OutcomeUnknown, StepFailed
from pocqueue.errors import first_line


async def upload(sftp: asyncssh.SFTPClient, path: str, data: bytes, mode: int) -> None:
    """Put a file there, with a mode from its first byte on: it is another file that takes the old one's place.

    Args:
        sftp: a session.
        path: of the file.
        data: all that it is to have.
        mode: of the file.

    Raises:
        StepFailed: it cannot be written; what was there is as it was.
        OutcomeUnknown: the connection broke; what was there is as it was, or is the new one.
    """
    new = f"{path}.pocqueue-tmp"
    try:
        # What an earlier try left behind may have another mode, or be a link.
        with suppress(asyncssh.SFTPNoSuchFile):
            await sftp.remove(new)
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        attributes = asyncssh.SFTPAttrs(permissions=mode)
        async with sftp.open(new, flags, attributes, encoding=None) as file:
            await file.chmod(mode)
            await file.write(data)
            await file.fsync()
        await sftp.posix_rename(new, path)
    except asyncssh.SFTPConnectionLost:
        raise OutcomeUnknown(f"Upload: {path}") from None
    except asyncssh.SFTPError as exc:
        raise StepFailed(
            f"Upload: {path}", f"{exc.reason}; {posixpath.dirname(path)} is as it was."
        ) from None
    except (OSError, asyncssh.Error) as exc:
        raise OutcomeUnknown(f"Upload: {path} ({first_line(exc)})") from None
