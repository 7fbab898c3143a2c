"""What is done to a server, one module a part of a phase; `all_steps` has them in order."""

from __future__ import annotations

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Step
from pocqueue.deploy.steps.admin_keys import AdminKeys, read_admin_keys
from pocqueue.deploy.steps.all_services import AllServices, ClosedPorts, ModelServed
from pocqueue.deploy.steps.chain import ChainSettings, NodeRestarted, NodeSynced
from pocqueue.deploy.steps.keys_backup import KeysBackup
from pocqueue.deploy.steps.model import HubProgram, Model
from pocqueue.deploy.steps.monitoring import Monitoring
from pocqueue.deploy.steps.node_files import HasNodeFile
from pocqueue.deploy.steps.packages import Packages
from pocqueue.deploy.steps.registration import Registration, RegistrationFile
from pocqueue.deploy.steps.repository import Repository
from pocqueue.deploy.steps.services import ServicesRun
from pocqueue.deploy.steps.volume import (
    FormatVolume,
    FstabLine,
    MountVolume,
    OwnMountPoint,
    VolumeNote,
)
from pocqueue.deploy.steps.wallet import WarmAddressFile, WarmKeyFile, WarmWallet

__all__ = ["all_steps"]


def all_steps(
    conf: Conf, *, garbage_serial: str = "", words_stay: bool = False
) -> tuple[Step, ...]:
    """Return the steps for a server.

    Args:
        conf: what it is to be.
        garbage_serial: of the disk whose old data may go; empty: none.
        words_stay: those of the warm wallet stay on the server.

    Raises:
        DeployError: a file that the conf names cannot be used.
    """
    keys = read_admin_keys(conf.admin_keys) if conf.admin_keys else ()
    return (
        AdminKeys(keys),
        FormatVolume(garbage_serial=garbage_serial),
        FstabLine(),
        MountVolume(),
        OwnMountPoint(),
        VolumeNote(),
        Packages(),
        Monitoring(),
        Repository(),
        HubProgram(),
        Model(),
        *(HasNodeFile(name) for name in ("config.env", "node-config.json", ".env")),
        KeysBackup(4),
        ServicesRun(),
        WarmWallet(),
        WarmKeyFile(stays=words_stay),
        WarmAddressFile(),
        Registration(),
        RegistrationFile(),
        KeysBackup(5),
        ChainSettings("config.toml"),
        ChainSettings("app.toml"),
        NodeRestarted(),
        NodeSynced(),
        KeysBackup(6),
        ClosedPorts(),
        AllServices(),
        ModelServed(),
    )
