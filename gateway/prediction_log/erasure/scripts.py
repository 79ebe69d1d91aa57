"""The Lua scripts that copy a stream and put the copy in its place.

Know keys by their place in KEYS only; rebuild.py names them. Both refuse to touch a copy that is
not there: whoever finds one that was left behind deletes it, and a command that was only slow must
not put a part of a stream in the place of the whole.
"""

from __future__ import annotations

from typing import Final

GONE: Final = "COPYGONE"
"""First word of the error when the copy is not there."""

# KEYS: stream, copy. ARGV: first id, last id, then the ids that are left out.
# The entries go from key to key inside the server. Answers how many went.
COPY: Final = f"""
if redis.call('EXISTS', KEYS[2]) == 0 then
  return redis.error_reply('{GONE} the copy of the stream was deleted')
end
local without = {{}}
for i = 3, #ARGV do without[ARGV[i]] = true end
local copied = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2])) do
  if not without[entry[1]] then
    redis.call('XADD', KEYS[2], entry[1], unpack(entry[2]))
    copied = copied + 1
  end
end
return copied
"""

# KEYS: stream, copy. ARGV: the last id that was looked at, the most entries to copy here, the
# greatest id that was left out or '0-0'.
# Copies what came since, then the stream's state, then puts the copy in its place. What was trimmed
# meanwhile is trimmed in the copy. An entry that is pending in a group and no longer stands there
# is not taken over; Redis drops such ones itself when they are claimed. Answers {'done', copied},
# {'behind'} if more came than may be copied here, {'gone'} if the stream is no more, or {'reset'}
# if it began anew: its ids are below those that were copied.
SWAP: Final = f"""
if redis.call('EXISTS', KEYS[2]) == 0 then
  return redis.error_reply('{GONE} the copy of the stream was deleted')
end
if redis.call('EXISTS', KEYS[1]) == 0 then return {{'gone'}} end
local function map(flat)
  local found = {{}}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
local function below(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  a_ms, a_seq, b_ms, b_seq = tonumber(a_ms), tonumber(a_seq), tonumber(b_ms), tonumber(b_seq)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

local info = map(redis.call('XINFO', 'STREAM', KEYS[1]))
if below(info['last-generated-id'], ARGV[1]) then return {{'reset'}} end
local most = tonumber(ARGV[2])
local tail = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', most + 1)
if #tail > most then return {{'behind'}} end
for _, entry in ipairs(tail) do redis.call('XADD', KEYS[2], entry[1], unpack(entry[2])) end

if info['length'] == 0 then
  redis.call('XTRIM', KEYS[2], 'MAXLEN', 0)
else
  redis.call('XTRIM', KEYS[2], 'MINID', info['first-entry'][1])
end
if info['entries-added'] then
  local deleted = info['max-deleted-entry-id']
  if below(deleted, ARGV[3]) then deleted = ARGV[3] end
  redis.call('XSETID', KEYS[2], info['last-generated-id'],
    'ENTRIESADDED', info['entries-added'], 'MAXDELETEDID', deleted)
else
  redis.call('XSETID', KEYS[2], info['last-generated-id'])
end

for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = map(flat)
  local create = {{'CREATE', KEYS[2], group['name'], group['last-delivered-id']}}
  if group['entries-read'] then
    create[5], create[6] = 'ENTRIESREAD', group['entries-read']
  end
  redis.call('XGROUP', unpack(create))
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group['name'])) do
    redis.call('XGROUP', 'CREATECONSUMER', KEYS[2], group['name'], map(consumer)['name'])
  end
  local from = '-'
  repeat
    local pending = redis.call('XPENDING', KEYS[1], group['name'], from, '+', 1000)
    for _, p in ipairs(pending) do
      if #redis.call('XRANGE', KEYS[2], p[1], p[1]) == 1 then
        redis.call('XCLAIM', KEYS[2], group['name'], p[2], 0, p[1],
          'IDLE', p[3], 'RETRYCOUNT', p[4], 'FORCE', 'JUSTID')
      end
      from = '(' .. p[1]
    end
  until #pending < 1000
end

local ttl = redis.call('PTTL', KEYS[1])
if ttl > 0 then redis.call('PEXPIRE', KEYS[2], ttl) end
redis.call('UNLINK', KEYS[1])
redis.call('RENAME', KEYS[2], KEYS[1])
return {{'done', #tail}}
"""
