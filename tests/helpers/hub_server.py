"""A small hub on loopback, for the real client of `huggingface_hub`: what pushing and loading ask of one.

Its answers are those that the client reads; repositories are kept in memory, and weights come by git LFS. The client
reads `HF_ENDPOINT` when it is imported: so it is to run in a process of its own.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


TOKEN = "hf_of_me"
USER = "me"
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "other"}
PIPELINE_TAGS = {"image-feature-extraction", "image-classification"}
DATASET_TYPE = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)


@dataclass
class Repository:
    """Each branch is a list of commits, which are pairs of a hash and all files; LFS files are not told apart."""

    private: bool
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        commits = self.branches.setdefault(branch, [])
        names = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
        sha = hashlib.sha1(repr((branch, len(commits), names)).encode()).hexdigest()
        commits.append((sha, files))
        return sha

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for commits in self.branches.values() for c in commits if c[0] == revision), None)


class Hub:
    """
    Args of note: `cuts` is how many uploads from now on are cut in the middle; `log` has what was asked, a line each.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.cuts = 0
        self.log: list[str] = []
        self.endpoint = ""

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[repo_id].find(revision)[1]

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """For a process whose hub this is to be."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # Xet's storage has a protocol of its own; without it files go by git LFS
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def running_hub():
    """A hub that answers at its `endpoint` until the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.message = status, message
        named = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in named.items() if value is not None}


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)", "create_branch"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_upload"),
        ("POST", r"/lfs/(?P<oid>\w+)/verify", "lfs_verify"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/commits/(?P<revision>[^/]+)", "commits"),
        ("GET", r"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
    )

    def do_GET(self):
        self.route("GET")

    do_HEAD = do_GET

    def do_POST(self):
        self.route("POST")

    def do_PUT(self):
        self.route("PUT")

    def log_message(self, *args):
        pass

    def route(self, method: str):
        path = urlsplit(self.path).path
        self.hub.log.append(f"{self.command} {path}")
        try:
            for wanted, pattern, name in self.ROUTES:
                if wanted == method and (match := re.fullmatch(pattern, path)):
                    arguments = {
                        key: None if text is None else unquote(text) for key, text in match.groupdict().items()
                    }
                    return getattr(self, name)(**arguments)
            self.read_body()
            raise Refusal(404, f"no {path} here")
        except Refusal as refusal:
            self.answer({"error": refusal.message}, refusal.status, refusal.headers)

    # who asks, and for what

    def user(self, must_be_known: bool = True) -> str | None:
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent == TOKEN:
            return USER
        if sent:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if must_be_known:
            raise Refusal(401, "Invalid username or password.")
        return None

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        user = self.user(must_be_known=write)
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and user != repo_id.split("/")[0]):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write and user != repo_id.split("/")[0]:
            raise Refusal(403, f'you have no write access to "{repo_id}"')
        return repository

    def at(self, repo_id: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        found = self.repository(repo_id).find(revision or "main")
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: object, status: int = 200, headers: dict | None = None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
            self.send_header(name, (headers or {}).get(name, value))
        for name, value in (headers or {}).items():
            if name not in ("Content-Length", "Content-Type"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # pushing

    def whoami(self):
        self.answer({"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"}})

    def create(self):
        asked, user = json.loads(self.read_body()), self.user()
        namespace = asked.get("organization") or user
        repo_id = f"{namespace}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories and namespace == user:
            return self.answer({"error": "You already created this model repo", "url": url}, 409)
        if namespace != user:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[repo_id] = Repository(private)
        self.hub.repositories[repo_id].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer({"url": url, "id": repo_id, "name": repo_id})

    def create_branch(self, repo: str, branch: str):
        self.read_body()
        repository = self.repository(repo, write=True)
        if branch in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.commit(branch, self.at(repo, "main")[1])
        self.answer({})

    def validate(self):
        errors = card_errors(json.loads(self.read_body())["content"])
        self.answer({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, repo: str, revision: str):
        asked = json.loads(self.read_body())["files"]
        self.repository(repo, write=True)
        there = self.at(repo, revision)[1]
        answers = []
        for file in asked:
            is_large = file["path"].endswith(".safetensors")
            data = there.get(file["path"])
            known = {} if data is None else {"oid": oid_of(data) if is_large else git_oid_of(data)}
            mode = "lfs" if is_large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.answer({"files": answers})

    def lfs_batch(self, repo: str):
        asked = json.loads(self.read_body())["objects"]
        self.repository(repo, write=True)
        answers = []
        for large in asked:
            href = f"{self.hub.endpoint}/lfs/{large['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            answers.append({**large, **({} if large["oid"] in self.hub.large_files else {"actions": actions})})
        self.answer({"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid: str):
        if self.hub.cuts > 0:
            self.hub.cuts -= 1
            self.rfile.read(1000)
            self.close_connection = True
            return self.connection.close()
        data = self.read_body()
        if oid_of(data) != oid:
            raise Refusal(400, "the content does not have this hash")
        self.hub.large_files[oid] = data
        return self.answer({})

    def lfs_verify(self, oid: str):
        size = json.loads(self.read_body())["size"]
        if len(self.hub.large_files.get(oid, b"")) != size:
            raise Refusal(422, "the content does not have this size")
        self.answer({})

    def commit(self, repo: str, revision: str):
        lines = [json.loads(line) for line in self.read_body().splitlines()]
        repository = self.repository(repo, write=True)
        files = dict(self.at(repo, revision)[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise Refusal(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif line["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        sha = repository.commit(revision, files)
        url = f"{self.hub.endpoint}/{repo}/commit/{sha}"
        self.answer({"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})

    # loading

    def info(self, repo: str, revision: str | None):
        sha, files = self.at(repo, revision)
        private = self.hub.repositories[repo].private
        siblings = [{"rfilename": name} for name in sorted(files)]
        self.answer({"_id": "0", "id": repo, "sha": sha, "private": private, "tags": [], "siblings": siblings})

    def tree(self, repo: str, revision: str, folder: str):
        files = self.at(repo, revision)[1] if not folder else {}
        entries = []
        for name, data in sorted(files.items()):
            lfs = {"lfs": {"oid": oid_of(data), "size": len(data), "pointerSize": 1}}
            entry = {"type": "file", "path": name, "size": len(data), "oid": git_oid_of(data)}
            entries.append(entry | (lfs if name.endswith(".safetensors") else {}))
        self.answer(entries)

    def commits(self, repo: str, revision: str):
        self.at(repo, revision)
        commits = self.hub.repositories[repo].branches.get(revision, [])
        date = "2026-01-01T00:00:00.000Z"
        self.answer([{"id": c[0], "title": "", "message": "", "date": date, "authors": []} for c in reversed(commits)])

    def resolve(self, repo: str, revision: str, name: str):
        sha, files = self.at(repo, revision)
        if name not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound", sha)
        data = files[name]
        is_large = name.endswith(".safetensors")
        etag = f'"{oid_of(data) if is_large else git_oid_of(data)}"'
        headers = {"ETag": etag, "X-Repo-Commit": sha, "Accept-Ranges": "bytes", "Content-Type": "text/plain"}
        if is_large:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self.answer(data, 200, headers)
        first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self.answer(data[first : last + 1], 206, headers)


def oid_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid_of(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def card_errors(card: str) -> list[str]:
    """What the hub would find fault with, by https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    block = re.match(r"\s*---\n(.*?)\n---[ \t]*(\n|$)", card, flags=re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata are not a mapping"]
    errors = []
    if not (isinstance(data.get("tags", []), list) and all(isinstance(tag, str) for tag in data.get("tags", []))):
        errors.append('"tags" must be an array of strings')
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    if "pipeline_tag" in data and data["pipeline_tag"] not in PIPELINE_TAGS:
        errors.append('"pipeline_tag" must be a task')
    for i, model in enumerate(data.get("model-index", [])):
        errors += [f'"model-index[{i}].{error}' for error in model_errors(model)]
    return errors


def model_errors(model: dict) -> list[str]:
    errors = [] if isinstance(model.get("name"), str) else ['name" is required']
    for i, result in enumerate(model.get("results", [])):
        for path in ("task.type", "dataset.type", "dataset.name"):
            part, key = path.split(".")
            if not isinstance(result.get(part, {}).get(key), str):
                errors.append(f'results[{i}].{path}" must be a string')
        if not DATASET_TYPE.fullmatch(str(result.get("dataset", {}).get("type"))):
            errors.append(f'results[{i}].dataset.type" fails to match the required pattern')
        for j, metric in enumerate(result.get("metrics", [])):
            if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), (int, float, str)):
                errors.append(f'results[{i}].metrics[{j}]" needs a type and a value')
    return errors
