"""The tables of a projection file, as numbered migrations. A change here is a new projector version."""

from __future__ import annotations

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

PROJECTOR_VERSION = 4

migrations = Migrations("projections")

# `crc` is the CRC-32 of the row's other columns, see `rows.py`.
TABLES = """
-- One row: how far the projection has come, of which log, and how its ready answers are encoded. The position
-- has a check of its own, since it goes out with every answer.
CREATE TABLE applied (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  log_id TEXT NOT NULL,
  position INTEGER NOT NULL,
  leaf BLOB NOT NULL,
  at INTEGER NOT NULL,
  projector_version INTEGER NOT NULL,
  encoding BLOB NOT NULL,
  position_crc INTEGER NOT NULL,
  crc INTEGER NOT NULL
) STRICT;

-- One row a version of an image. An event makes at most one, so `since`, its position, is the key and
-- rows are only ever appended. `wire` is the ready answer, held by the current version alone.
CREATE TABLE image (
  since INTEGER PRIMARY KEY,
  until INTEGER,
  id TEXT NOT NULL,
  folder_id TEXT NOT NULL,
  name TEXT NOT NULL,
  family TEXT NOT NULL,
  status TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  born INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  state BLOB NOT NULL,
  crc INTEGER NOT NULL,
  wire BLOB,
  wire_crc INTEGER
) STRICT;

-- The ready answers again, as neighbours in the order of a plain list, a few dozen a row: see chunks.py.
CREATE TABLE listing (
  folder_id TEXT NOT NULL,
  first TEXT NOT NULL,
  ids TEXT NOT NULL,
  ends BLOB NOT NULL,
  wires BLOB NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY (folder_id, first)
) STRICT, WITHOUT ROWID;

-- The position of the last event of an image of a folder: as of that one and later, its images are as now.
CREATE TABLE folder (
  folder_id TEXT PRIMARY KEY,
  changed INTEGER NOT NULL,
  crc INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- From when to when an image was there at all, so that a list as of the past skips dead versions.
CREATE TABLE image_life (
  folder_id TEXT NOT NULL,
  id TEXT NOT NULL,
  born INTEGER NOT NULL,
  died INTEGER,
  crc INTEGER NOT NULL,
  PRIMARY KEY (folder_id, id)
) STRICT, WITHOUT ROWID;

-- One row an answer: from `since` to `until` this family resolved to this image.
CREATE TABLE family_latest (
  folder_id TEXT NOT NULL,
  family TEXT NOT NULL,
  since INTEGER NOT NULL,
  until INTEGER,
  image_id TEXT NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY (folder_id, family, since)
) STRICT, WITHOUT ROWID;

-- One row a version of an operation; `first` is the position of its first event.
CREATE TABLE operation (
  since INTEGER PRIMARY KEY,
  until INTEGER,
  id TEXT NOT NULL,
  resource_id TEXT NOT NULL,
  first INTEGER NOT NULL,
  actor TEXT NOT NULL,
  method TEXT NOT NULL,
  key TEXT NOT NULL,
  state BLOB NOT NULL,
  crc INTEGER NOT NULL
) STRICT;

-- Which blobs something current refers to, an image or a source: the others may be unlinked. So it is kept
-- twice, here and in the columns `sha256` of image and source, and only what neither knows of is unused.
CREATE TABLE blob_use (
  sha256 TEXT NOT NULL,
  id TEXT NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY (sha256, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE source (
  since INTEGER PRIMARY KEY,
  until INTEGER,
  id TEXT NOT NULL,
  folder_id TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  state BLOB NOT NULL,
  crc INTEGER NOT NULL
) STRICT;
"""

INDEXES = """
-- Get, and Get as of a position: the newest version at or before it is one seek.
CREATE INDEX image_version ON image (id, since);
-- List by id, the default order.
CREATE INDEX image_folder ON image (folder_id, id) WHERE until IS NULL;
-- List by name; and the database itself refuses a second image of a name in a folder.
CREATE UNIQUE INDEX image_name ON image (folder_id, name) WHERE until IS NULL AND name != '';
-- List by family, and which image a family falls back to when its latest is deleted.
CREATE INDEX image_family ON image (folder_id, family, born) WHERE until IS NULL AND family != '';
-- What a crash left unfinished, found at start without a scan.
CREATE INDEX image_creating ON image (since) WHERE until IS NULL AND status = 'CREATING';
-- Whether a blob is used, beside `blob_use`.
CREATE INDEX image_blob ON image (sha256) WHERE until IS NULL AND sha256 != '';
-- Get of an operation.
CREATE INDEX operation_version ON operation (id, since);
-- ListOperations, newest first.
CREATE INDEX operation_resource ON operation (resource_id, first);
-- A repeated Idempotency-Key finds its first operation.
CREATE INDEX operation_key ON operation (key, actor, method, first) WHERE key != '';
CREATE INDEX source_version ON source (id, since);
-- The list of sources, now and as of the past.
CREATE INDEX source_folder ON source (folder_id, id) WHERE until IS NULL;
CREATE INDEX source_folder_ever ON source (folder_id, id);
CREATE INDEX source_blob ON source (sha256) WHERE until IS NULL;
"""


@migrations()
def m001_tables(db: Database) -> None:
    for statement in _statements(TABLES):
        db.execute(statement)


def create_indexes(db: Database) -> None:
    """The indexes; a rebuild makes them when the rows are in, which is several times faster."""
    for statement in _statements(INDEXES):
        db.execute(statement)


def _statements(script: str) -> list[str]:
    return [statement for statement in script.split(";\n") if statement.strip()]
