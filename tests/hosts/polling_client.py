"""A machine without a socket, which asks over REST as the second public client does: its fields, its order, its mistakes."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tests.support.waiting import PATIENCE_S


class PollingClient:
    """One machine. It knows neither its node's id nor any state: its token is all that it has.

    Args:
        url: of the gateway.
        wallet, token: as its owner has set them.
        capabilities: that it says it has.
        number: of the loopback address that it has.
    """

    def __init__(
        self,
        url: str,
        wallet: str,
        token: str,
        *,
        capabilities: tuple[str, ...] = ("inference", "render"),
        number: int = 1,
    ) -> None:
        self.wallet, self.capabilities = wallet, capabilities
        self.http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            transport=httpx.HTTPTransport(local_address=f"127.0.0.{number}"),
            timeout=PATIENCE_S,
        )

    def register(self) -> httpx.Response:
        """Say what the machine is; done at each start."""
        body = {
            "walletAddress": self.wallet,
            "gpuModel": "NVIDIA GeForce RTX 4090",
            "vram": 24,
            "driverVersion": "550.54",
            "cudaVersion": 12040,
            "hostOS": "Linux 6.8",
            "cpuModel": "AMD Ryzen 9",
            "ramTotal": 64000,
            "location": {"country": "Unknown", "city": "Unknown", "lat": 0, "lon": 0},
            "capabilities": list(self.capabilities),
        }
        return self.http.post("/api/nodes/register", json=body)

    def join(self) -> str:
        """Register; return the node's id."""
        reply = self.register()
        assert reply.status_code in {200, 201}, reply.text
        return str(reply.json()["node"]["nodeId"])

    def beat(self) -> httpx.Response:
        """Say that it is there; done once a minute."""
        body = {"walletAddress": self.wallet, "status": "online"}
        return self.http.post("/api/nodes/heartbeat", json=body)

    def poll(self) -> dict[str, Any] | None:
        """Ask for a job; None: there is none."""
        reply = self.http.get("/api/jobs/available", params={"wallet": self.wallet})
        assert reply.status_code == 200, reply.text
        job: dict[str, Any] | None = reply.json()["job"]
        return job

    def next_job(self) -> dict[str, Any]:
        """Ask until there is a job."""
        deadline = time.monotonic() + PATIENCE_S
        while (job := self.poll()) is None:
            assert time.monotonic() < deadline, "no job came"
            time.sleep(0.05)
        return job

    def result(self, job_id: str, result: dict[str, Any] | None = None) -> httpx.Response:
        """Bring a result; it does not know who it is."""
        body = {
            "nodeId": "current_node_id",
            "result": result or {"result": "Generic job completed", "exit_code": 0},
            "logs": [],
            "metrics": {},
        }
        return self.http.post(f"/api/jobs/{job_id}/result", json=body)

    def failure(self, job_id: str, error: str) -> httpx.Response:
        """Say that a job has failed."""
        return self.http.post(f"/api/jobs/{job_id}/failure", json={"error": error})
