"""The messages of a fragment by pydantic's models, with those rules of the contract that are about types and patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from benchmarks.stages.messages import BUCKET, OUTPUT_ID, STEP, measure

if TYPE_CHECKING:
    from benchmarks.stages.task import Meter, Task

FragmentId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{64}$")]


class File(BaseModel):
    """A file of a fragment."""

    name: Annotated[str, Field(min_length=1, max_length=4095)]
    path: Annotated[str, Field(min_length=1, max_length=1024)]
    bucket: Annotated[str, Field(min_length=1, max_length=255)]


class Metadata(BaseModel):
    """What a fragment says about itself."""

    fragment_id: FragmentId
    predecessors: list[FragmentId] | None = None
    target_queue: str | None = None
    custom: dict[str, Any] | None = None


class Fragment(BaseModel):
    """A fragment as it travels on a queue."""

    files: Annotated[list[File], Field(min_length=1)]
    metadata: Metadata


class Lineage(BaseModel):
    """The lineage message of one fragment."""

    transformation_step: str
    description: Fragment


def models(task: Task, meter: Meter) -> None:
    """By models."""

    def follow(body: bytes) -> tuple[bytes, bytes]:
        fragment = Fragment.model_validate_json(body)
        output = Fragment(
            files=[
                File(name=file.name, path=f"iterum_data/{OUTPUT_ID}/{file.name}", bucket=BUCKET)
                for file in fragment.files
            ],
            metadata=Metadata(fragment_id=OUTPUT_ID, predecessors=[fragment.metadata.fragment_id]),
        )
        lineage = Lineage(transformation_step=STEP, description=output)
        return (
            output.model_dump_json(exclude_none=True).encode(),
            lineage.model_dump_json(exclude_none=True).encode(),
        )

    measure(task, meter, follow)
