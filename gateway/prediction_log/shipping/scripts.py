"""What runs inside Redis: claiming a name, appending blocks to a stream, and retention.

Works on Redis and Valkey from 6.2 on. Every command's error is caught and handed back as text: an
error that a script raises is worded differently by different servers.

Claiming (`CLAIM`) and appending (`APPEND`) look at the owner key of the name first, in the same
atomic step in which they write. Its value is `token:heartbeat`, in milliseconds of Redis' clock, so
the clocks of gateways need not agree.

Appending walks over whole blocks (spool/block.py), an argument of any number of them, because a
client spends more on an argument than on a record. Of each record it says one of these:
  - added;
  - doubled: its id is not above the stream's last one, and it stands there with the same bytes;
  - erased: nothing is left of it but a zero;
  - overtaken: its id is not above the stream's last one, and it does not stand there. It may have
    been deleted meanwhile, and is then repeated under a new id, which readers see by its `rid`. The
    other mistake, to take it for written, would be a loss that nobody could see;
  - failed, and then nothing after it was tried.

Retention (`_RETAIN`). Everything is a trim up to an id, of at most so many entries; the oldest go
first. Entries that the slowest group has not been given are counted to the unit: first go the whole
nodes below what it has seen, which costs nothing to know; then what is left of those it has seen is
counted, which is less than a node; then the rest goes, and of it those counted were seen.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from gateway.prediction_log.spool.block import HEADER_BYTES

FIELD: Final = b"r"
"""The one field of an entry: the blob of record.py."""
MAX_ID_PART: Final = 1 << 53
"""Greatest number in an id: above it the scripts' numbers, which are doubles, are not exact."""
TRIM_ENTRIES: Final = 10_000
"""Most entries that one call removes: it holds the server."""
_FEW_ENTRIES: Final = TRIM_ENTRIES // 2
_COUNT_AT: Final = 12  # offsets in a block's header, which is big-endian
_HEAD: Final = "'>I4I8I4'"  # count, ms and seq of the first id


class Script(NamedTuple):
    """A script and the digest by which it is called."""

    source: str
    sha: str

    @classmethod
    def of(cls, *parts: str) -> Script:
        """Put a script together."""
        source = "".join(parts)
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


# Ids are pairs of numbers. `describe` answers last-generated-id and length, or an error.
_COMMON: Final = f"""
local LARGEST = {MAX_ID_PART}
local function parse(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return {{tonumber(ms), tonumber(seq)}}
end
local function text(id)
  return string.format('%.0f-%.0f', id[1], id[2])
end
local function less(a, b)
  return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
end
local function fields_of(list)
  local fields = {{}}
  for n = 1, #list, 2 do fields[list[n]] = list[n + 1] end
  return fields
end
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function describe(key)
  local info = redis.pcall('XINFO', 'STREAM', key)
  if info.err then
    if string.find(info.err, 'no such key', 1, true) then
      return {{0, 0}}, 0, nil, nil
    end
    return nil, 0, nil, info.err
  end
  local fields = fields_of(info)
  return parse(fields['last-generated-id']), fields['length'], fields['first-entry'], nil
end
"""

_RETAIN: Final = f"""
local removed, unread = 0, 0
local function xtrim(key, ...)
  local reply = redis.pcall('XTRIM', key, 'MINID', ...)
  if type(reply) ~= 'number' then reply = 0 end
  removed = removed + reply
  return reply
end
local function after(id)
  return text({{id[1], id[2] + 1}})
end
-- Whole nodes below the target, at most so many entries.
local function cut(key, target, most, slowest)
  if slowest and less(slowest, target) then
    most = most - xtrim(key, '~', after(slowest), 'LIMIT', most)
    if most <= 0 then return end
    local seen = #redis.call('XRANGE', key, '-', text(slowest), 'COUNT', most)
    local gone = xtrim(key, '~', text(target), 'LIMIT', most)
    unread = unread + math.max(0, gone - seen)
  else
    xtrim(key, '~', text(target), 'LIMIT', most)
  end
end
-- To the entry, for what `cut` left of the node that the target is in.
local function cut_exactly(key, target, slowest)
  if slowest and less(slowest, target) then
    xtrim(key, '=', after(slowest))
    unread = unread + xtrim(key, '=', text(target))
  else
    xtrim(key, '=', text(target))
  end
end
-- ARGV from `first`: the oldest ms to keep (0: any age), the oldest ms to keep for a group that is
-- respected, the entries to keep, 1 to trim by age to the entry, and the names of such groups.
local function retain(key, length, first)
  local keep_from, hold_from = {{tonumber(ARGV[first]), 0}}, {{tonumber(ARGV[first + 1]), 0}}
  local entries, is_exact = tonumber(ARGV[first + 2]), ARGV[first + 3] == '1'
  local slowest, held
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  if groups.err then groups = {{}} end
  for _, group in ipairs(groups) do
    local fields = fields_of(group)
    local seen = parse(fields['last-delivered-id'])
    if seen[1] < LARGEST then
      if not slowest or less(seen, slowest) then slowest = seen end
      for n = first + 4, #ARGV do
        if ARGV[n] == fields['name'] and (not held or less(seen, held)) then held = seen end
      end
    end
  end
  local bound = {{LARGEST, 0}}
  if held then
    bound = {{held[1], held[2] + 1}}
    if less(bound, hold_from) then bound = hold_from end
  end
  if less(bound, keep_from) then keep_from = bound end
  if keep_from[1] > 0 then
    cut(key, keep_from, {TRIM_ENTRIES}, slowest)
    if is_exact and removed < {_FEW_ENTRIES} then cut_exactly(key, keep_from, slowest) end
  end
  local over = length - removed - entries
  if over > 0 then cut(key, bound, math.min(over, {TRIM_ENTRIES}), slowest) end
end
"""

# KEYS: the stream, the owner key. ARGV: the token, ms after which an owner counts as gone.
# Answers {outcome, age of the other owner's heartbeat or -1, last id, length, first id, size of the
# first entry, error}.
CLAIM: Final = Script.of(
    _COMMON,
    """
local now, outcome, age = now_ms(), 'absent', -1
local owner = redis.pcall('GET', KEYS[2])
if type(owner) == 'table' and owner.err then
  return {'failed', -1, '0-0', 0, '', 0, owner.err}
end
if owner then
  local other, beat = string.match(owner, '^(.*):(%d+)$')
  if other == ARGV[1] then
    outcome = 'ours'
  elseif other then
    age = math.max(0, now - beat)
    if age < tonumber(ARGV[2]) then return {'fenced', age, '0-0', 0, '', 0, ''} end
    outcome = 'stale'
  end
end
local last, length, first, failure = describe(KEYS[1])
if failure then return {'failed', -1, '0-0', 0, '', 0, failure} end
local beaten = redis.pcall('SET', KEYS[2], ARGV[1] .. ':' .. string.format('%.0f', now))
if beaten.err then return {'failed', -1, '0-0', 0, '', 0, beaten.err} end
local first_id, bytes = '', 0
if first then
  first_id = first[1]
  for _, piece in ipairs(first[2]) do bytes = bytes + #piece end
end
return {outcome, age, text(last), length, first_id, bytes, ''}
""",
)

# KEYS: the stream, the owner key. ARGV: the token, the id that the stream must have reached, the
# blocks (may be empty), then retention's. Answers {outcome, added, doubled, erased, removed,
# removed before every group had read them, length, last id, error, indices of the overtaken ...}.
APPEND: Final = Script.of(
    _COMMON,
    _RETAIN,
    f"""
local function answer(outcome, failure)
  return {{outcome, 0, 0, 0, 0, 0, 0, '0-0', failure or ''}}
end
local owner = redis.pcall('GET', KEYS[2])
if type(owner) == 'table' and owner.err then return answer('failed', owner.err) end
if not owner then return answer('unowned') end
if string.sub(owner, 1, #ARGV[1] + 1) ~= ARGV[1] .. ':' then return answer('fenced', owner) end
local last, length, first, failure = describe(KEYS[1])
if failure then return answer('failed', failure) end
if less(last, parse(ARGV[2])) then return answer('forgot', text(last)) end

local added, doubled, erased, overtaken = 0, 0, 0, {{}}
failure = ''
local function same(entry, blob)
  return entry and #entry[2] == 2 and entry[2][1] == '{FIELD.decode()}' and entry[2][2] == blob
end
local function append(id, blob)
  local reply = redis.pcall('XADD', KEYS[1], id, '{FIELD.decode()}', blob)
  if type(reply) ~= 'table' or not reply.err then
    added = added + 1
  elseif not string.find(reply.err, 'equal or smaller', 1, true) then
    failure = reply.err
  elseif same(redis.call('XRANGE', KEYS[1], id, id)[1], blob) then
    doubled = doubled + 1
  else
    overtaken[#overtaken + 1] = added + doubled + erased + #overtaken
  end
end
local blocks, at = ARGV[3], 1
while at <= #blocks and failure == '' do
  local count, ms, seq = struct.unpack({_HEAD}, blocks, at + {_COUNT_AT})
  at = at + {HEADER_BYTES}
  for n = seq, seq + count - 1 do
    local blob
    blob, at = struct.unpack('>I4c0', blocks, at)
    if string.byte(blob) == 0 then
      erased = erased + 1
    else
      append(string.format('%.0f-%.0f', ms, n), blob)
      if failure ~= '' then break end
    end
  end
end
redis.pcall('SET', KEYS[2], ARGV[1] .. ':' .. string.format('%.0f', now_ms()))
length = length + added
retain(KEYS[1], length, 4)
length = length - removed
local reply = {{'ok', added, doubled, erased, removed, unread, length, text(last), failure}}
for _, index in ipairs(overtaken) do reply[#reply + 1] = index end
return reply
""",
)

# KEYS: a stream whose replica may be gone, its owner key. ARGV: ms after which an owner counts as
# gone, then retention's. Answers {removed, removed before every group had read them}.
TRIM_ORPHAN: Final = Script.of(
    _COMMON,
    _RETAIN,
    """
local owner = redis.call('GET', KEYS[2])
local beat = owner and string.match(owner, ':(%d+)$')
if beat and now_ms() - beat < tonumber(ARGV[1]) then return {0, 0} end
local last, length, first, failure = describe(KEYS[1])
if last and length > 0 then retain(KEYS[1], length, 2) end
return {removed, unread}
""",
)

# KEYS: the owner key. ARGV: the token.
RELEASE: Final = Script.of(
    """
local owner = redis.call('GET', KEYS[1])
if owner and string.sub(owner, 1, #ARGV[1] + 1) == ARGV[1] .. ':' then
  redis.call('DEL', KEYS[1])
end
return 1
"""
)
