"""The Lua scripts of the route store: what happens inside Redis, one at a time and wholly.

Knows keys by their place in KEYS only; redis_store.py names them. Effects are replicated, not the
script, so that a script may ask for the time and then write (the default since Redis 5).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name by which a server remembers it."""

    text: str

    @property
    def sha(self) -> str:
        """What EVALSHA calls it."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# KEYS: document, history, audit, names. ARGV: 1 expected position or '', 2 name, 3 generation,
# 4 revision, 5 digest, 6 body, 7 audit digest, 8 the frame for the history, 9 audit entry,
# 10 revisions to keep, 11 audit entries to keep, 12 channel.
# Answers {'written'}, {'done'} to who repeats a change whose reply was lost, {'stale', document}
# or {'type', key, what it is}. Everything that could fail is looked at before the first write:
# nothing undoes half a script. The audit entry is the first write: should an access rule forbid
# the others, no change goes unrecorded.
WRITE: Final = Script("""
for i, wanted in ipairs({'hash', 'hash', 'stream', 'set'}) do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'none' and found ~= wanted then return {'type', KEYS[i], found} end
end
local function number(text)
  if text and #text <= 15 and string.match(text, '^[1-9]%d*$') then return text end
  return '0'
end
local position = ARGV[3] .. '-' .. ARGV[4]
if redis.call('HGET', KEYS[2], position) == ARGV[8] then return {'done'} end
local doc = redis.call('HMGET', KEYS[1], 'generation', 'rev', 'digest', 'body', 'audit')
local at = ''
if redis.call('EXISTS', KEYS[1]) == 1 then at = number(doc[1]) .. '-' .. number(doc[2]) end
if at ~= ARGV[1] then return {'stale', doc} end

redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[11], '*', 'e', ARGV[9])
redis.call('HSET', KEYS[2], position, ARGV[8])
redis.call('SADD', KEYS[4], ARGV[2])
redis.call('HSET', KEYS[1], 'generation', ARGV[3], 'rev', ARGV[4], 'digest', ARGV[5],
  'body', ARGV[6], 'audit', ARGV[7])

local excess = redis.call('HLEN', KEYS[2]) - tonumber(ARGV[10])
if excess > 0 then
  local kept = {}
  for i, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    local generation, revision = string.match(field, '^(%d+)-(%d+)$')
    kept[i] = {tonumber(generation or 0), tonumber(revision or 0), field}
  end
  table.sort(kept, function(a, b)
    if a[1] ~= b[1] then return a[1] < b[1] end
    return a[2] < b[2]
  end)
  for i = 1, excess do redis.call('HDEL', KEYS[2], kept[i][3]) end
end
redis.pcall('PUBLISH', ARGV[12], ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. ARGV[4])
return {'written'}
""")

# KEYS: replicas. ARGV: replica, report.
REPORT: Final = Script("""
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now_ms) .. ' ' .. ARGV[2])
return 1
""")

# KEYS: replicas. ARGV: milliseconds after which a replica is gone. Answers replica, age in
# milliseconds and report of each; one whose time lies ahead, the clock having been set back, is
# fresh.
REPLICAS: Final = Script("""
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local found, answer = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #found, 2 do
  local ts_ms, report = string.match(found[i + 1], '^(%d+) (.*)$')
  local age_ms = ts_ms and math.max(0, now_ms - tonumber(ts_ms))
  if age_ms and age_ms <= tonumber(ARGV[1]) then
    for _, part in ipairs({found[i], string.format('%.0f', age_ms), report}) do
      answer[#answer + 1] = part
    end
  else
    redis.pcall('HDEL', KEYS[1], found[i])
  end
end
return answer
""")
