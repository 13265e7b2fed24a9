-- Which trace a job belongs to: the W3C traceparent of the request that led to it.
-- depends: 0018-mirror

ALTER TABLE jobs ADD COLUMN IF NOT EXISTS trace text;
