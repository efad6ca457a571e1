"""Whole files of a store: written with missing folders, and read back."""

from kvq_batch.storage.objects import put_file, put_files, read_file
from tests.support.stores import Store


def test_put_file_creates_folders_and_overwrites(store: Store) -> None:
    uri = f"{store.uri}/new/folder/a b#1?.bin"
    put_file(uri, b"first", store.options)
    put_file(uri, b"second", store.options)
    assert read_file(uri, store.options) == b"second"


def test_put_files_writes_all_files(store: Store) -> None:
    contents = {f"{store.uri}/{folder}/x.bin": folder.encode() for folder in ("a", "b/c")}
    put_files(contents, store.options)
    put_files({}, store.options)
    assert {uri: read_file(uri, store.options) for uri in contents} == contents
