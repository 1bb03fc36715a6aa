-- The ledger of one run. A row a span, a shard, a batch, an upload, a transition, a deployment; never a row of the source.
-- name: schema
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;
CREATE TABLE span (
  span INTEGER PRIMARY KEY,
  first_row INTEGER NOT NULL CHECK (first_row >= 0),
  stop_row INTEGER NOT NULL CHECK (stop_row >= first_row)
) STRICT;
CREATE TABLE shard (
  shard INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  span INTEGER NOT NULL REFERENCES span,
  first_row INTEGER NOT NULL UNIQUE,
  stop_row INTEGER NOT NULL CHECK (stop_row > first_row),
  requests INTEGER NOT NULL CHECK (requests >= 0),
  skipped INTEGER NOT NULL CHECK (requests + skipped = stop_row - first_row),
  bytes INTEGER NOT NULL CHECK (bytes >= 0),
  tokens INTEGER NOT NULL CHECK (tokens >= 0),
  batched INTEGER NOT NULL DEFAULT 0 CHECK (batched IN (0, 1))
) STRICT;
CREATE INDEX shard_unbatched ON shard (shard) WHERE batched = 0;
CREATE TABLE deployment (
  name TEXT PRIMARY KEY,
  endpoint TEXT NOT NULL,
  quota_tokens INTEGER CHECK (quota_tokens > 0),
  learned_tokens INTEGER CHECK (learned_tokens > 0),
  enqueued_header INTEGER,
  maximum_header INTEGER,
  proven INTEGER NOT NULL DEFAULT 0 CHECK (proven IN (0, 1)),
  set_aside TEXT
) STRICT;
CREATE TABLE batch (
  batch INTEGER PRIMARY KEY,
  deployment TEXT NOT NULL REFERENCES deployment,
  state TEXT NOT NULL,
  rows INTEGER NOT NULL CHECK (rows > 0),
  bytes INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  refusals INTEGER NOT NULL DEFAULT 0,
  not_before REAL NOT NULL DEFAULT 0,
  posted_at REAL,
  unsettled_at REAL,
  input_deleted_at REAL,
  upload INTEGER REFERENCES upload,
  remote_id TEXT UNIQUE,
  remote_status TEXT NOT NULL DEFAULT '',
  missing_since REAL,
  output_file_id TEXT,
  error_file_id TEXT,
  error_code TEXT,
  error_message TEXT,
  count_total INTEGER,
  count_completed INTEGER,
  count_failed INTEGER,
  succeeded INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  leftover INTEGER NOT NULL DEFAULT 0,
  leftover_placed INTEGER NOT NULL DEFAULT 0 CHECK (leftover_placed IN (0, 1)),
  prompt_tokens INTEGER NOT NULL DEFAULT 0,
  completion_tokens INTEGER NOT NULL DEFAULT 0,
  CHECK (state <> 'submitted' OR remote_id IS NOT NULL),
  CHECK (state <> 'posting' OR (upload IS NOT NULL AND posted_at IS NOT NULL)),
  CHECK (state <> 'unsettled' OR unsettled_at IS NOT NULL),
  CHECK (state <> 'done' OR succeeded + failed + leftover = rows)
) STRICT;
CREATE INDEX batch_open ON batch (batch) WHERE state NOT IN ('done', 'split');
CREATE INDEX batch_leftover ON batch (batch) WHERE state = 'done' AND leftover > 0 AND leftover_placed = 0;
CREATE TABLE batch_shard (
  batch INTEGER NOT NULL REFERENCES batch,
  shard INTEGER NOT NULL REFERENCES shard,
  rows INTEGER NOT NULL CHECK (rows > 0),
  PRIMARY KEY (batch, shard)
) STRICT, WITHOUT ROWID;
CREATE INDEX batch_shard_by_shard ON batch_shard (shard, batch);
CREATE TABLE upload (
  upload INTEGER PRIMARY KEY,
  batch INTEGER NOT NULL REFERENCES batch,
  name TEXT NOT NULL UNIQUE,
  begun_at REAL NOT NULL,
  file_id TEXT UNIQUE,
  deleted_at REAL
) STRICT;
CREATE INDEX upload_present ON upload (upload) WHERE file_id IS NOT NULL AND deleted_at IS NULL;
CREATE TABLE transition (
  id INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  batch INTEGER NOT NULL REFERENCES batch,
  old TEXT NOT NULL,
  new TEXT NOT NULL,
  note TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TRIGGER transition_kept BEFORE DELETE ON transition BEGIN SELECT RAISE(ABORT, 'transitions are never deleted'); END;

-- name: put_meta
INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value
-- name: get_meta
SELECT value FROM meta WHERE key = ?
-- name: add_span
INSERT INTO span (span, first_row, stop_row) VALUES (?, ?, ?)
-- name: last_span
SELECT coalesce(max(span) + 1, 0), coalesce(max(stop_row), 0) FROM span
-- name: add_shard
INSERT INTO shard (name, span, first_row, stop_row, requests, skipped, bytes, tokens) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
-- name: shards
SELECT shard, name, first_row, stop_row, requests, skipped, bytes, tokens FROM shard ORDER BY shard
-- name: shards_of_batch
SELECT s.shard, s.name, s.first_row, s.stop_row, s.requests, s.skipped, s.bytes, s.tokens
FROM shard s JOIN batch_shard b USING (shard) WHERE b.batch = ? ORDER BY s.shard
-- name: shards_covering
SELECT shard, name, first_row, stop_row, requests, skipped, bytes, tokens FROM shard
WHERE stop_row > ? AND first_row <= ? ORDER BY shard
-- name: shards_unbatched
SELECT shard, name, first_row, stop_row, requests, skipped, bytes, tokens FROM shard
WHERE batched = 0 AND requests > 0 ORDER BY shard LIMIT ?
-- name: shards_unbatched_count
SELECT count(*) FROM shard WHERE batched = 0 AND requests > 0
-- name: mark_batched
UPDATE shard SET batched = 1 WHERE shard = ? AND batched = 0
-- name: totals
SELECT count(*), coalesce(sum(stop_row - first_row), 0), coalesce(sum(requests), 0), coalesce(sum(skipped), 0),
       coalesce(sum(bytes), 0), coalesce(sum(tokens), 0) FROM shard
-- name: add_deployment
INSERT INTO deployment (name, endpoint, quota_tokens) VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET endpoint = excluded.endpoint, quota_tokens = coalesce(excluded.quota_tokens, quota_tokens),
  set_aside = NULL
-- name: deployments
SELECT name, endpoint, quota_tokens, learned_tokens, enqueued_header, maximum_header, proven, set_aside
FROM deployment ORDER BY name
-- name: next_batch
SELECT coalesce(max(batch), 0) + 1 FROM batch
-- name: add_batch
INSERT INTO batch (batch, deployment, state, rows, bytes, tokens) VALUES (?, ?, 'planned', ?, ?, ?)
-- name: add_batch_shard
INSERT INTO batch_shard (batch, shard, rows) VALUES (?, ?, ?)
-- name: batches
SELECT b.batch, b.deployment, b.state, b.rows, b.bytes, b.tokens, b.refusals, b.not_before, b.posted_at, b.unsettled_at,
  b.input_deleted_at, b.remote_id, b.remote_status, b.missing_since, b.output_file_id, b.error_file_id, b.error_code,
  b.error_message, u.file_id, u.name, b.succeeded, b.failed, b.leftover
FROM batch b LEFT JOIN upload u ON u.upload = b.upload
-- name: place_leftover
UPDATE batch SET leftover_placed = 1 WHERE batch = ? AND leftover_placed = 0
-- name: leftovers
SELECT batch, leftover FROM batch WHERE state = 'done' AND leftover > 0 AND leftover_placed = 0 ORDER BY batch
-- name: outcome_files
SELECT bs.shard, b.batch, b.deployment, coalesce(b.remote_id, '') FROM batch_shard bs JOIN batch b USING (batch)
WHERE b.state = 'done' ORDER BY bs.shard, b.batch
-- name: add_upload
INSERT INTO upload (batch, name, begun_at) VALUES (?, ?, ?)
-- name: uploads_of_batch
SELECT count(*) FROM upload WHERE batch = ?
-- name: upload_arrived
UPDATE upload SET file_id = ? WHERE name = ?
-- name: upload_deleted
UPDATE upload SET deleted_at = ? WHERE file_id = ?
-- name: uploads_spent
SELECT u.file_id FROM upload u JOIN batch b USING (batch)
WHERE u.file_id IS NOT NULL AND u.deleted_at IS NULL AND (b.state IN ('done', 'split') OR b.upload IS NOT u.upload)
-- name: file_is_ours
SELECT batch FROM upload WHERE file_id = ?
-- name: add_transition
INSERT INTO transition (at, batch, old, new, note) VALUES (?, ?, ?, ?, ?)
-- name: transitions
SELECT at, batch, old, new, note FROM transition ORDER BY id
-- name: state_counts
SELECT state, count(*), sum(rows), sum(tokens), sum(succeeded), sum(failed), sum(leftover), sum(prompt_tokens),
  sum(completion_tokens), sum(coalesce(count_completed, 0) + coalesce(count_failed, 0)), sum(leftover * leftover_placed)
FROM batch GROUP BY state
