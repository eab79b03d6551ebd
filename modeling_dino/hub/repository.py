# SPDX-License-Identifier: Apache-2.0
"""A model's repository on the hub: makes it, reads files and uploads in one commit, with errors of one line."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HTTPError, RemoteEntryNotFoundError  # the first is the HTTP client's own


# one file, or shards and their index; the weights of a variant have other names
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class HubRepository:
    """
    A repository to push to; it is made if it is not there.

    Args:
        repo_id: `name` or `namespace/name`; the attribute of this name has both.
        token: replaces the one that is logged in.
        private: whether a repository that is made is private.
        revision: a branch other than `main`; it is made if it is not there.

    Raises:
        ValueError: if the name is not valid.
        PermissionError: if there is no valid token, or it does not have the right.
        ConnectionError: if the hub cannot be reached.
        OSError: if the hub refuses for another reason.
    """

    def __init__(
        self,
        repo_id: str,
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
    ):
        self.repo_id, self.revision = repo_id, revision
        self.has_token = bool(get_token() if token in (None, True) else token)
        self.api = HfApi(token=token)
        with self._clear_errors():
            self.repo_id = self.api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/pr"):
                self.api.create_branch(self.repo_id, branch=revision, exist_ok=True)

    def read(self, name: str) -> str | None:
        """Reads the text of a file, if there is one; raises as the constructor does."""
        with self._clear_errors():
            try:
                path = self.api.hf_hub_download(self.repo_id, name, revision=self.revision)
            except RemoteEntryNotFoundError:
                return None
        return Path(path).read_bytes().decode()

    def upload(self, folder: str | os.PathLike, **commit_arguments) -> CommitInfo:
        """
        Uploads the files of a folder in one commit, which is not visible before it is complete.

        Weights of an earlier push under other names are removed, since they would be loaded instead.

        Args:
            commit_arguments: arguments of `HfApi.create_commit`.

        Raises:
            ValueError: if the hub rejects the model card.
            OSError: as the constructor does.
        """
        paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
        with self._clear_errors():
            there = self.api.list_repo_files(self.repo_id, revision=self.revision)
            operations = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in paths]
            operations += [CommitOperationDelete(name) for name in stale_weights(there, [path.name for path in paths])]
            return self.api.create_commit(self.repo_id, operations, revision=self.revision, **commit_arguments)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (HTTPError, RuntimeError) as error:  # uploads wrap theirs in a RuntimeError
            raise self._clear_error(error if isinstance(error, HTTPError) else error.__cause__ or error) from error

    def _clear_error(self, error: BaseException) -> OSError:
        hub = constants.ENDPOINT
        response = getattr(error, "response", None)
        if response is None:
            reason = str(error) or type(error).__name__
            return ConnectionError(f"the connection to {hub} failed ({reason}): push again to complete {self.repo_id}")
        said = getattr(error, "server_message", None) or response.reason_phrase
        if response.status_code == 401:
            what = "does not accept the token" if self.has_token else "asks for a token"
            return PermissionError(f"{hub} {what}: run `hf auth login`, or set HF_TOKEN")
        if response.status_code == 403:
            return PermissionError(f"no right to write to {self.repo_id} at {hub}: {said}")
        if response.status_code == 404:
            return FileNotFoundError(f"there is no repository {self.repo_id} at {hub}: {said}")
        return OSError(f"{hub} refuses {self.repo_id} with status {response.status_code}: {said}")


def stale_weights(there: list[str], pushed: list[str]) -> list[str]:
    """Returns the weights in a repository that pushed weights replace under other names; none if none are pushed."""
    if not any(WEIGHTS.fullmatch(name) for name in pushed):
        return []
    return [name for name in there if WEIGHTS.fullmatch(name) and name not in pushed]
