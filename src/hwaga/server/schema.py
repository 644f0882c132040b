"""The tables of the database of jobs, and what makes them of those of earlier versions."""

from __future__ import annotations

from hwaga.server.jobs import TERMINAL
from hwaga.server.keys import CLOSED_TABLE, KEY_TABLES
from hwaga.server.pictures import PICTURE_TABLES

VERSION = 3

UPGRADES = {
    1: f"{CLOSED_TABLE}INSERT INTO closed SELECT 1 FROM api_keys LIMIT 1;\n",
    2: "ALTER TABLE jobs ADD COLUMN request_id TEXT;\n",
}
"""Statements that make the next version of each earlier one."""

SCHEMA = f"""
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of arrival, which a clock that is set back does not change
    id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, owner TEXT NOT NULL, body TEXT NOT NULL,
    idempotency_key TEXT, fingerprint TEXT NOT NULL,
    created REAL NOT NULL, started REAL, finished REAL,
    status TEXT NOT NULL DEFAULT 'queued', cancel_requested INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0, lost INTEGER NOT NULL DEFAULT 0,
    worker TEXT, lease_boot TEXT, lease_until REAL,
    step INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
    error_type TEXT, error_message TEXT, request_id TEXT,
    UNIQUE (owner, idempotency_key)
) STRICT;
CREATE INDEX jobs_by_status ON jobs (status, finished);
CREATE INDEX jobs_by_age ON jobs (created, id);
CREATE TRIGGER an_end_is_final BEFORE UPDATE ON jobs WHEN OLD.status IN {TERMINAL}
BEGIN SELECT RAISE(ABORT, 'a job that has ended does not change'); END;
{PICTURE_TABLES}CREATE TABLE owners (owner TEXT PRIMARY KEY, served INTEGER NOT NULL) STRICT;
{KEY_TABLES}{CLOSED_TABLE}"""
