"""A step: every text in capitals."""

from iterum_sidecar.step import Fragment, transform


@transform
def shout(fragment: Fragment) -> None:
    """Make a file of each file of a fragment. Put here what you want to do with yours."""
    for file in fragment.files:
        text = file.path.read_text(encoding="utf-8")
        with fragment.create(file.name) as path:
            path.write_text(text.upper(), encoding="utf-8")


if __name__ == "__main__":
    shout.run()
