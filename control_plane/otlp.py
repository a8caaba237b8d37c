"""Spans to an OpenTelemetry collector; the only module that imports ``opentelemetry``.

They wait in memory and are sent in batches from a thread. While the collector is away they are
dropped once too many wait: a trace is never worth a delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from control_plane.tracing import Span

TIMEOUT_S: Final = 5.0
_RESOURCE: Final = Resource({"service.name": "foedus"})


class OtlpSpans:
    """Sends spans by OTLP over HTTP, as protobuf."""

    def __init__(self, endpoint: str) -> None:
        """Start the thread that sends.

        Args:
            endpoint: Of the collector, as ``http://127.0.0.1:4318``.
        """
        url = f"{endpoint.rstrip('/')}/v1/traces"
        self._batches = BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_S))

    def send(self, spans: Sequence[Span]) -> None:
        """Hand spans over; returns at once."""
        for span in spans:
            self._batches.on_end(_readable(span))

    async def close(self) -> None:
        """Send what waits, and stop."""
        await asyncio.to_thread(self._batches.shutdown)


def _readable(span: Span) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=_context(span.trace, span.id, is_remote=False),
        parent=_context(span.trace, span.parent, is_remote=True) if span.parent else None,
        resource=_RESOURCE,
        attributes=dict(span.attributes),
        status=Status(StatusCode.ERROR if span.failed else StatusCode.OK),
        start_time=_nanoseconds(span.start),
        end_time=_nanoseconds(span.end),
    )


def _context(trace: str, span: str, *, is_remote: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(int(trace, 16), int(span, 16), is_remote=is_remote, trace_flags=flags)


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
