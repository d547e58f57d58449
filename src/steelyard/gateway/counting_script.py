"""Counting against limits inside Valkey: what happens to all places of a request at once.

The windows are those of `access/rate_limit.py`, on Valkey's own clock. Of each place there are

    :w  how many requests and tokens each tick has (r12, t12), and their sums (R, T)
    :k  the ticks that have any, the oldest first
    :n  how many requests each gateway runs in it

and once for all `gateways`: until when each of them is believed to live. A gateway that does not say
so in time is dead: what it ran counts no more, and it has to join again under another name.
"""

from typing import Final

# KEYS: gateways, then w, k, n of each place.
# ARGV: gateway, window, tokens, then of each place its limits (-1: none): requests, tokens, at once.
# Answers {1, tick, R, T, tick, R, T, ...}, or {0, place, kind, wait, R, T, reset}, or {-1}: unknown.
COUNT: Final = """
local gateway, window, tokens = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local clock = time[1] * 10 + math.floor(time[2] / 100000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. clock)
if not redis.call('ZSCORE', KEYS[1], gateway) then return {-1} end

local function wait(w, k, field, excess, now)
  for _, tick in ipairs(redis.call('LRANGE', k, 0, -1)) do
    excess = excess - (tonumber(redis.call('HGET', w, field .. tick)) or 0)
    if excess <= 0 then return tick + window - now end
  end
  return window
end

local places = {}
for i = 1, (#KEYS - 1) / 3 do
  local w, k, n = KEYS[3 * i - 1], KEYS[3 * i], KEYS[3 * i + 1]
  local newest = redis.call('LINDEX', k, -1)
  -- A clock that was set back must not put ticks out of order.
  local now = math.max(clock, tonumber(newest) or 0)
  local oldest = redis.call('LINDEX', k, 0)
  while oldest and tonumber(oldest) <= now - window do
    redis.call('LPOP', k)
    local gone = redis.call('HMGET', w, 'r' .. oldest, 't' .. oldest)
    redis.call('HDEL', w, 'r' .. oldest, 't' .. oldest)
    redis.call('HINCRBY', w, 'R', 0 - (tonumber(gone[1]) or 0))
    redis.call('HINCRBY', w, 'T', 0 - (tonumber(gone[2]) or 0))
    oldest = redis.call('LINDEX', k, 0)
  end
  local sums = redis.call('HMGET', w, 'R', 'T')
  local R, T = tonumber(sums[1]) or 0, tonumber(sums[2]) or 0
  local reset = oldest and newest + window - now or 0
  local requests, per_minute, at_once =
    tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
  if requests >= 0 and R + 1 > requests then
    return {0, i, 1, wait(w, k, 'r', R + 1 - requests, now), R, T, reset}
  end
  if per_minute >= 0 and T + tokens > per_minute then
    return {0, i, 2, wait(w, k, 't', T + tokens - per_minute, now), R, T, reset}
  end
  if at_once >= 0 then
    local running, counts = 1, redis.call('HGETALL', n)
    for j = 1, #counts, 2 do
      if redis.call('ZSCORE', KEYS[1], counts[j]) then
        running = running + counts[j + 1]
      else
        redis.call('HDEL', n, counts[j])
      end
    end
    if running > at_once then return {0, i, 3, 0, R, T, reset} end
  end
  places[i] = {w, k, n, now, newest}
end

local answer = {1}
for _, place in ipairs(places) do
  local w, k, n, now, newest = unpack(place)
  if not newest or tonumber(newest) < now then redis.call('RPUSH', k, now) end
  redis.call('HINCRBY', w, 'r' .. now, 1)
  redis.call('HINCRBY', w, 't' .. now, tokens)
  answer[#answer + 1] = now
  answer[#answer + 1] = redis.call('HINCRBY', w, 'R', 1)
  answer[#answer + 1] = redis.call('HINCRBY', w, 'T', tokens)
  redis.call('HINCRBY', n, gateway, 1)
  redis.call('EXPIRE', w, 120)
  redis.call('EXPIRE', k, 120)
  redis.call('EXPIRE', n, 86400)
end
return answer
"""

# KEYS: w, n of each place. ARGV: gateway, tokens that were too many, then the tick of each place.
END: Final = """
local too_many = 0 - tonumber(ARGV[2])
for i = 1, #KEYS / 2 do
  local w, n, tick = KEYS[2 * i - 1], KEYS[2 * i], ARGV[i + 2]
  if redis.call('HEXISTS', w, 't' .. tick) == 1 then
    redis.call('HINCRBY', w, 't' .. tick, too_many)
    redis.call('HINCRBY', w, 'T', too_many)
  end
  if redis.call('HINCRBY', n, ARGV[1], -1) <= 0 then redis.call('HDEL', n, ARGV[1]) end
end
return 1
"""

# KEYS: gateways, then n of each place. ARGV: gateway, its name before, ticks that it is believed to
# live, then how many requests it runs in each place.
JOIN: Final = """
local time = redis.call('TIME')
local clock = time[1] * 10 + math.floor(time[2] / 100000)
redis.call('ZREM', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[1], clock + ARGV[3], ARGV[1])
for i = 2, #KEYS do
  redis.call('HSET', KEYS[i], ARGV[1], ARGV[i + 2])
  redis.call('EXPIRE', KEYS[i], 86400)
end
return 1
"""

# KEYS: gateways. ARGV: gateway, ticks. Answers 0 if it is unknown.
LIVE: Final = """
local time = redis.call('TIME')
local clock = time[1] * 10 + math.floor(time[2] / 100000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. clock)
return redis.call('ZADD', KEYS[1], 'XX', 'CH', clock + ARGV[2], ARGV[1])
"""
