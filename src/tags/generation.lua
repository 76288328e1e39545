-- The value of a tag: generation (8 bytes), mode (1), since (6), generations that were replaced
-- softly (14 each), readable name. `src/tags/value.rs` has the table.

local time = redis.call('TIME')

-- Eight bytes that no tag has ever had. The clock is mixed in, so that a call which runs twice
-- never writes a generation again that another call has replaced in between.
local function generation(seed)
  local hex = redis.sha1hex(seed .. time[1] .. '.' .. time[2])
  return (string.gsub(string.sub(hex, 1, 16), '%x%x', function(pair)
    return string.char(tonumber(pair, 16))
  end))
end

-- The time of the server, in ms.
local function server_ms()
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether the key holds another type than a tag does.
local function foreign()
  local kind = redis.call('TYPE', KEYS[1]).ok
  return kind ~= 'none' and kind ~= 'string'
end

