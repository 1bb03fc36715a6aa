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
CREATE INDEX shard_unbatched ON shard (shard) WHERE batched = 0 AND requests > 0;
-- Sums over all shards and over all batches, kept up by triggers: what is asked at every pass must not cost a row each.
CREATE TABLE sealed (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  shards INTEGER NOT NULL DEFAULT 0,
  rows INTEGER NOT NULL DEFAULT 0,
  requests INTEGER NOT NULL DEFAULT 0,
  skipped INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,
  tokens INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO sealed (one) VALUES (1);
CREATE TRIGGER shard_counted AFTER INSERT ON shard BEGIN
  UPDATE sealed SET shards = shards + 1, rows = rows + new.stop_row - new.first_row, requests = requests + new.requests,
    skipped = skipped + new.skipped, bytes = bytes + new.bytes, tokens = tokens + new.tokens;
END;
CREATE TABLE deployment (
  name TEXT PRIMARY KEY,
  model TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  quota_tokens INTEGER CHECK (quota_tokens > 0),
  learnt TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(learnt)),
  proven INTEGER NOT NULL DEFAULT 0 CHECK (proven IN (0, 1)),
  set_aside TEXT
) STRICT;
CREATE TABLE batch (
  batch INTEGER PRIMARY KEY,
  deployment TEXT REFERENCES deployment,
  state TEXT NOT NULL,
  rows INTEGER NOT NULL CHECK (rows > 0),
  bytes INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  refusals INTEGER NOT NULL DEFAULT 0,
  not_before REAL NOT NULL DEFAULT 0,
  since REAL NOT NULL DEFAULT 0,
  kind TEXT NOT NULL DEFAULT 'first' CHECK (kind IN ('first', 'pooled', 'adopted', 'copy')),
  fetches INTEGER NOT NULL DEFAULT 0,
  cancel_asked INTEGER NOT NULL DEFAULT 0 CHECK (cancel_asked IN (0, 1)),
  results_deleted INTEGER NOT NULL DEFAULT 0 CHECK (results_deleted IN (0, 1)),
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
  used_prompt_tokens INTEGER,
  used_completion_tokens INTEGER,
  succeeded INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  leftover INTEGER NOT NULL DEFAULT 0,
  retaken INTEGER NOT NULL DEFAULT 0 CHECK (retaken <= failed),
  leftover_placed INTEGER NOT NULL DEFAULT 0 CHECK (leftover_placed IN (0, 1)),
  prompt_tokens INTEGER NOT NULL DEFAULT 0,
  completion_tokens INTEGER NOT NULL DEFAULT 0,
  cached_tokens INTEGER NOT NULL DEFAULT 0,
  reasoning_tokens INTEGER NOT NULL DEFAULT 0,
  unknown_lines INTEGER NOT NULL DEFAULT 0,
  doubled_lines INTEGER NOT NULL DEFAULT 0,
  malformed_lines INTEGER NOT NULL DEFAULT 0,
  lost_rows INTEGER NOT NULL DEFAULT 0,
  answered_rows INTEGER NOT NULL DEFAULT 0,
  invalid_answers INTEGER NOT NULL DEFAULT 0,
  CHECK (state <> 'submitted' OR remote_id IS NOT NULL),
  CHECK (state NOT IN ('uploading', 'uploaded', 'posting', 'unsettled', 'submitted') OR deployment IS NOT NULL),
  CHECK (state <> 'posting' OR (upload IS NOT NULL AND posted_at IS NOT NULL)),
  CHECK (state <> 'unsettled' OR unsettled_at IS NOT NULL),
  CHECK (state <> 'done' OR succeeded + failed + leftover = rows)
) STRICT;
CREATE INDEX batch_open ON batch (batch) WHERE state NOT IN ('done', 'split');
CREATE INDEX batch_planned ON batch (batch) WHERE state = 'planned';
CREATE INDEX batch_leftover ON batch (batch) WHERE state = 'done' AND leftover > 0 AND leftover_placed = 0;
CREATE INDEX batch_found ON batch (batch) WHERE kind NOT IN ('first', 'pooled');
CREATE TABLE tally (
  deployment TEXT NOT NULL,
  state TEXT NOT NULL,
  batches INTEGER NOT NULL,
  rows INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  succeeded INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  leftover INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  reported INTEGER NOT NULL,
  placed INTEGER NOT NULL,
  PRIMARY KEY (deployment, state)
) STRICT, WITHOUT ROWID;
CREATE VIEW batch_share AS
SELECT batch, coalesce(deployment, '') AS deployment, state, rows, tokens, succeeded, failed - retaken AS failed, leftover,
  prompt_tokens, completion_tokens, coalesce(count_completed, 0) + coalesce(count_failed, 0) AS reported,
  leftover * leftover_placed AS placed
FROM batch;
CREATE TRIGGER batch_counted AFTER INSERT ON batch BEGIN
  INSERT INTO tally SELECT deployment, state, 1, rows, tokens, succeeded, failed, leftover, prompt_tokens,
    completion_tokens, reported, placed FROM batch_share WHERE batch = new.batch
  ON CONFLICT (deployment, state) DO UPDATE SET batches = batches + 1, rows = rows + excluded.rows,
    tokens = tokens + excluded.tokens, succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
    leftover = leftover + excluded.leftover, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens, reported = reported + excluded.reported,
    placed = placed + excluded.placed;
END;
CREATE TRIGGER batch_uncounted BEFORE UPDATE OF deployment, state, rows, tokens, succeeded, failed, retaken, leftover,
  leftover_placed, prompt_tokens, completion_tokens, count_completed, count_failed ON batch BEGIN
  UPDATE tally SET batches = batches - 1, rows = tally.rows - share.rows, tokens = tally.tokens - share.tokens,
    succeeded = tally.succeeded - share.succeeded, failed = tally.failed - share.failed,
    leftover = tally.leftover - share.leftover, prompt_tokens = tally.prompt_tokens - share.prompt_tokens,
    completion_tokens = tally.completion_tokens - share.completion_tokens, reported = tally.reported - share.reported,
    placed = tally.placed - share.placed
  FROM (SELECT * FROM batch_share WHERE batch = old.batch) AS share
  WHERE tally.deployment = share.deployment AND tally.state = share.state;
END;
CREATE TRIGGER batch_recounted AFTER UPDATE OF deployment, state, rows, tokens, succeeded, failed, retaken, leftover,
  leftover_placed, prompt_tokens, completion_tokens, count_completed, count_failed ON batch BEGIN
  INSERT INTO tally SELECT deployment, state, 1, rows, tokens, succeeded, failed, leftover, prompt_tokens,
    completion_tokens, reported, placed FROM batch_share WHERE batch = new.batch
  ON CONFLICT (deployment, state) DO UPDATE SET batches = batches + 1, rows = rows + excluded.rows,
    tokens = tokens + excluded.tokens, succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
    leftover = leftover + excluded.leftover, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens, reported = reported + excluded.reported,
    placed = placed + excluded.placed;
END;
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
  deployment TEXT NOT NULL REFERENCES deployment,
  name TEXT NOT NULL UNIQUE,
  begun_at REAL NOT NULL,
  file_id TEXT UNIQUE,
  remote_id TEXT UNIQUE,
  deleted_at REAL
) STRICT;
CREATE INDEX upload_by_batch ON upload (batch);
CREATE INDEX upload_unknown ON upload (upload) WHERE file_id IS NULL AND deleted_at IS NULL;
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
WHERE first_row >= coalesce((SELECT max(first_row) FROM shard WHERE first_row <= ?), 0) AND first_row <= ? ORDER BY first_row
-- name: shards_unbatched
SELECT shard, name, first_row, stop_row, requests, skipped, bytes, tokens FROM shard
WHERE batched = 0 AND requests > 0 ORDER BY shard LIMIT ?
-- name: mark_batched
UPDATE shard SET batched = 1 WHERE shard = ? AND batched = 0
-- name: totals
SELECT shards, rows, requests, skipped, bytes, tokens FROM sealed
-- name: add_deployment
INSERT INTO deployment (name, model, endpoint, quota_tokens) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET model = excluded.model, endpoint = excluded.endpoint,
  quota_tokens = coalesce(excluded.quota_tokens, quota_tokens), set_aside = NULL
-- name: deployments
SELECT name, model, endpoint, quota_tokens, learnt, proven, set_aside FROM deployment ORDER BY name
-- name: next_batch
SELECT coalesce(max(batch), 0) + 1 FROM batch
-- name: add_batch
INSERT INTO batch (batch, state, rows, bytes, tokens, kind, since) VALUES (?, 'planned', ?, ?, ?, ?, ?)
-- name: add_batch_shard
INSERT INTO batch_shard (batch, shard, rows) VALUES (?, ?, ?)
-- name: batches
SELECT b.batch, b.deployment, b.state, b.rows, b.bytes, b.tokens, b.refusals, b.not_before, b.posted_at, b.unsettled_at,
  b.input_deleted_at, b.remote_id, b.remote_status, b.missing_since, b.output_file_id, b.error_file_id, b.error_code,
  b.error_message, u.file_id, u.name, b.succeeded, b.failed, b.leftover, b.since, b.kind, b.fetches, b.cancel_asked,
  b.count_total, b.count_completed, b.count_failed, b.upload
FROM batch b LEFT JOIN upload u ON u.upload = b.upload
-- name: retake
UPDATE batch SET retaken = retaken + ? WHERE batch = ?
-- name: place_leftover
UPDATE batch SET leftover_placed = 1 WHERE batch = ? AND leftover_placed = 0
-- name: leftovers
SELECT batch, leftover FROM batch WHERE state = 'done' AND leftover > 0 AND leftover_placed = 0 ORDER BY batch
-- name: outcome_files
SELECT bs.shard, b.batch, coalesce(b.deployment, ''), coalesce(b.remote_id, '') FROM batch_shard bs JOIN batch b USING (batch)
WHERE b.state = 'done' ORDER BY bs.shard, b.batch
-- name: add_upload
INSERT INTO upload (batch, deployment, name, begun_at) VALUES (?, ?, ?, ?)
-- name: has_uploads
SELECT 1 FROM upload WHERE deployment = ? AND file_id IS NOT NULL LIMIT 1
-- name: uploads_of_batch
SELECT count(*) FROM upload WHERE batch = ?
-- name: upload_arrived
UPDATE upload SET file_id = ? WHERE name = ?
-- name: upload_deleted
UPDATE upload SET deleted_at = ? WHERE file_id = ?
-- name: uploads_spent
SELECT u.file_id, u.deployment FROM upload u INDEXED BY upload_present JOIN batch b USING (batch)
WHERE u.file_id IS NOT NULL AND u.deleted_at IS NULL AND (b.state IN ('done', 'split') OR b.upload IS NOT u.upload)
-- name: uploads_lost
SELECT u.name, u.deployment FROM upload u INDEXED BY upload_unknown JOIN batch b USING (batch)
WHERE u.file_id IS NULL AND u.deleted_at IS NULL AND (b.state <> 'uploading' OR b.upload IS NOT u.upload)
-- name: give_upload
UPDATE upload SET batch = ? WHERE upload = ?
-- name: adopted_batches
SELECT batch FROM batch WHERE kind NOT IN ('first', 'pooled') ORDER BY batch
-- name: upload_of_file
SELECT upload, batch, deployment, remote_id FROM upload WHERE file_id = ?
-- name: upload_accepted
UPDATE upload SET remote_id = ? WHERE upload = (SELECT upload FROM batch WHERE batch = ?)
-- name: upload_swept
UPDATE upload SET file_id = ?, deleted_at = ? WHERE name = ?
-- name: add_transition
INSERT INTO transition (at, batch, old, new, note) VALUES (?, ?, ?, ?, ?)
-- name: transitions
SELECT at, batch, old, new, note FROM transition ORDER BY id
-- name: state_counts
SELECT state, sum(batches), sum(rows), sum(tokens), sum(succeeded), sum(failed), sum(leftover), sum(prompt_tokens),
  sum(completion_tokens), sum(reported), sum(placed)
FROM tally GROUP BY state HAVING sum(batches) > 0
-- name: queued
SELECT deployment, state, batches, tokens FROM tally WHERE batches > 0
-- name: any_open
SELECT EXISTS (SELECT 1 FROM batch WHERE state NOT IN ('done', 'split'))
-- name: leftover_rows
SELECT coalesce(sum(leftover - placed), 0) FROM tally WHERE state = 'done'
-- name: audit
SELECT batch, coalesce(remote_id, ''), deployment, remote_status, rows, count_total, count_completed, count_failed,
  succeeded, failed, leftover, answered_rows, unknown_lines, doubled_lines, malformed_lines, lost_rows, invalid_answers,
  prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, used_prompt_tokens, used_completion_tokens
FROM batch WHERE state = 'done' ORDER BY batch
-- name: doubtful
SELECT batch, coalesce(remote_id, ''), deployment, remote_status, rows, count_total, count_completed, count_failed,
  succeeded, failed, leftover, answered_rows, unknown_lines, doubled_lines, malformed_lines, lost_rows, invalid_answers,
  prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, used_prompt_tokens, used_completion_tokens
FROM batch WHERE state = 'done' AND (
  count_total <> rows OR count_completed <> answered_rows OR count_total <> count_completed + coalesce(count_failed, 0)
  OR used_prompt_tokens <> prompt_tokens OR used_completion_tokens <> completion_tokens
  OR unknown_lines + doubled_lines + malformed_lines + lost_rows > 0) ORDER BY batch
