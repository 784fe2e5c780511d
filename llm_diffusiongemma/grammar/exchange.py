"""Numbers that go from a device to the host or back at every step, through memory that stays in its place."""

from __future__ import annotations

import torch


class Exchange:
    """fp32 numbers on a device and on the host: one of them writes, and then the other has them.

    To an accelerator each way is one copy. CUDA's are queued from and to pinned memory, and only `fetch` waits. On
    a CPU both are the same memory, and nothing is copied.

    **Invariant**: between `send` and writing on the host again something is fetched from the same device. So the
    copy has happened by then.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.on_device = torch.empty(shape, dtype=torch.float32, device=device)
        self.on_host = self.on_device
        if device.type != "cpu":
            self.on_host = torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=is_cuda)
        self._event = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def fetch(self) -> torch.Tensor:
        """What the device has written, on the host. Waits for it."""
        if self.on_host is not self.on_device:
            self.on_host.copy_(self.on_device, non_blocking=self._event is not None)
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self.on_device.device))
            self._event.synchronize()
        return self.on_host

    def send(self) -> torch.Tensor:
        """What the host has written, on the device, for what is queued from now on."""
        if self.on_host is not self.on_device:
            self.on_device.copy_(self.on_host, non_blocking=self._event is not None)
        return self.on_device
