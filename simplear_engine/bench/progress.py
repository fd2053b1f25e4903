"""A bar on stderr for work that takes a while; nothing where stderr is no terminal."""


def bar(iterable=None, **settings):
    from tqdm import tqdm

    return tqdm(iterable, leave=False, disable=None, **settings)


def write(line: str, file) -> None:
    """A line of text without breaking a bar."""
    from tqdm import tqdm

    tqdm.write(line, file=file)
    file.flush()
