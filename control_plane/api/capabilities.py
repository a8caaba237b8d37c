"""``/v1/capabilities``: what a job can ask for here."""

from __future__ import annotations

from litestar import get

from clients.resources import CapabilitiesView
from control_plane import capabilities
from control_plane.api.requests import Call


@get("/v1/capabilities", operation_id="getCapabilities", tags=["capabilities"])
async def get_capabilities(request: Call) -> CapabilitiesView:
    """Show runtimes, strategies, programs, data sets and variants."""
    return capabilities.view(request.service.platform.capabilities)


HANDLERS = (get_capabilities,)
