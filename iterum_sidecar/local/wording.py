"""What the sidecars of a local run say, in words for someone who wrote a pipeline file, and not the variables of a pod."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["WARNINGS", "in_words_of_a_pipeline"]

#: Warnings that can come in a local run, as `telemetry.logs.tell_warnings` takes them; the step is told before.
WARNINGS: Final = {
    "a config file cannot be had yet; asking on": "the config file {file} cannot be had yet, and is asked for again: {reason}",
    "a done is not waited for any longer; its fragment is handed out again": "the program is rid of fragment {fragment_id}"
    " without a word of it; it is handed out again",
    "a file on the volume cannot be removed; further ones are not told": "a file that it used cannot be removed: {file}:"
    " {reason} (further ones are not told)",
    "a result came after its fragments were settled; it is published without their protection": "a result came after the"
    " program had said that its fragment was done; it is kept",
    "breach on an output connection; it is closed": "what its program sent cannot be read ({breach}), so that connection is"
    " closed, and what it had in work is handed out again",
    "breach: something was sent on an input connection; closing it": "its program sent something on the socket that is for"
    " reading alone, so that connection is closed",
    "cannot accept a connection; trying again": "its program cannot be connected to: {reason}",
    "the socket was taken away, and cannot be made again": "the socket {path} was removed, and cannot be made again: {reason}",
    "the socket was taken away; listening at its path again": "the socket {path} was removed; it is there again",
    "too many connections; further ones wait until one closes": "its program has {open} connections open, and more of them"
    " must wait until it closes some",
    "fragments are not finished in time; their connection is closed, and they are tried again": "its program has not finished a"
    " fragment for {seconds} s, and is ended",
    "the store fails at one object and not at others; asking on": "one of its files cannot be had or kept for {failing_seconds} s"
    " now, though others can, and is tried again: {reason}",
    "the transformation holds all that may be in flight and finishes none; if it gathers,"
    " it needs a larger MQ_PREFETCH_COUNT (prefetch_count of the step)": "its program holds {window} fragments, all that its"
    " prefetch_count lets it have, and finishes none; if it gathers, raise that to {needed_at_least} or more, or leave it out",
    "the transformation is at work and finishes nothing": "its program has had work for {seconds} s and has finished none of it",
    "waiting for a descriptor or memory to be free": "waiting for {waited_seconds} s already: {reason}",
    "waiting for room on the volume": "waiting for {waited_seconds} s already: {path}: {reason}",
    "waiting for the transformation": "its program has not connected for {seconds} s",
    "waiting for the store": "waiting for {waited_seconds} s already: {reason}",
}

#: What a local run sets itself: there is nothing that a user could write instead.
_FIXED = re.compile(r" \(SIDECAR_(?:DRAIN_SECONDS|SERVICE_TIMEOUT)\)")
_SETTING = re.compile(r"\bSIDECAR_([A-Z0-9_]+)")


def in_words_of_a_pipeline(text: str) -> str:
    """Return the text of an error or a reason of a sidecar with the keys of a pipeline file in place of variables."""
    text = _FIXED.sub("", text)
    text = text.replace("; DATA_VOLUME_PATH must name a directory", "; was it removed?")
    text = text.replace("ITERUM_CONFIG maps no queue to the", "queue_mapping in its config has no")
    text = text.replace(
        "cannot be written to the volume: ", "cannot be written to the output folder: "
    )
    text = text.replace("MQ_PREFETCH_COUNT", "prefetch_count")
    return _SETTING.sub(lambda found: f'"{found[1].lower()}" of "sidecar" in its config', text)
