-- One decision about one key, by the server's time in microseconds. All numbers are whole and below 2^53.
-- KEYS[1]: the key. ARGV: how to count, the cost, and what that way of counting needs.
-- Answers: whether it passes, how many are left, microseconds until there are more, and until this one would pass (-1: never).
local time = redis.call('TIME')
local now = (time[1] - 1750000000) * 1000000 + time[2]
local way, cost = ARGV[1], tonumber(ARGV[2])
local a, b, c = 0, 0, 0
local known = redis.call('GET', KEYS[1])
if known then
  a, b, c = known:match('^(%-?%d+) (%-?%d+) (%-?%d+)$')
  a, b, c = tonumber(a), tonumber(b), tonumber(c)
end
local function keep(x, y, z, micros)
  redis.call('SET', KEYS[1], string.format('%.0f %.0f %.0f', x, y, z), 'PX', string.format('%.0f', math.ceil(micros / 1000) + 1))
end

if way == 'gcra' then
  -- a: what is taken, in nanoseconds; b: when that was.
  local interval, tolerance = tonumber(ARGV[3]), tonumber(ARGV[4])
  local debt = known and math.max(0, a - math.max(0, now - b) * 1000) or 0
  local after = debt + cost * interval
  local pass = after <= tolerance
  if pass then
    debt = after
    keep(debt, math.max(now, b), 0, debt / 1000)
  end
  local wait = pass and 0 or math.ceil((after - tolerance) / 1000)
  return { pass and 1 or 0, math.floor((tolerance - debt) / interval), math.ceil(debt / 1000), cost * interval > tolerance and -1 or wait }
elseif way == 'bucket' then
  -- a: the period; b: the tokens that are left in it.
  local period, count, burst = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  local number = math.floor(now / period)
  if not known then a, b = number, burst end
  if number > a then a, b = number, math.min(burst, b + (number - a) * count) end
  local pass = cost <= b
  if pass then
    b = b - cost
    keep(a, b, 0, (math.ceil((burst - b) / count) + 1) * period)
  end
  local boundary = (a + 1) * period - now
  local wait = pass and 0 or boundary + (math.ceil((cost - b) / count) - 1) * period
  return { pass and 1 or 0, b, boundary, cost > burst and -1 or wait }
elseif way == 'window' then
  -- a: the window; b: what the one before has counted; c: what it has itself.
  local window, limit = tonumber(ARGV[3]), tonumber(ARGV[4])
  local number = math.max(math.floor(now / window), a)
  local elapsed = math.max(now - number * window, 0)
  if number == a + 1 then b, c = c, 0 elseif number > a + 1 then b, c = 0, 0 end
  local pass = b * (window - elapsed) + (c + cost) * window <= limit * window
  local wait = 0
  if not pass then
    if cost > limit then
      wait = -1
    elseif c + cost <= limit then
      wait = math.max(0, window - elapsed - math.floor((limit - cost - c) * window / math.max(b, 1)))
    else
      wait = window - elapsed + window - math.min(window, math.floor((limit - cost) * window / c))
    end
  else
    c = c + cost
    keep(number, b, c, 2 * window)
  end
  local left = math.max(0, math.floor((limit * window - b * (window - elapsed) - c * window) / window))
  return { pass and 1 or 0, left, window - elapsed, wait }
end
-- A quota. a: the mark of the calendar from which it counts, in seconds; b: what is used. The marks that may matter follow.
local limit, from, to = tonumber(ARGV[3]), nil, nil
for at = 4, #ARGV - 1 do
  if tonumber(ARGV[at]) <= tonumber(time[1]) and tonumber(time[1]) < tonumber(ARGV[at + 1]) then
    from, to = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  end
end
if not from then
  return redis.error_reply('CLOCK the clocks of gateway and server are too far apart')
end
if from > a then a, b = from, 0 end
local pass = b + cost <= limit
local reset = (to - time[1]) * 1000000 - time[2]
if pass then
  b = b + cost
  keep(a, b, 0, reset)
end
local wait = pass and 0 or reset
return { pass and 1 or 0, math.max(0, limit - b), reset, cost > limit and -1 or wait }
