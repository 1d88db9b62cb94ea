-- Loops that LuaJIT compiles: numbers, bits, tables, strings, and C data.
-- The argument divides the rounds of the longest.
local bit, ffi = require("bit"), require("ffi")
local part = tonumber(arg[1])

local state = 0x12345678
local function random()
  state = bit.bxor(state, bit.lshift(state, 13))
  state = bit.bxor(state, bit.rshift(state, 17))
  state = bit.bxor(state, bit.lshift(state, 5))
  return state
end

local hash = 0
for n = 1, 20000000 / part do
  hash = bit.tobit(bit.rol(hash, 5) + random() % 1000 + bit.band(n, 0xff))
end

local sieve, primes = {}, 0
for n = 2, 400000 do
  if not sieve[n] then
    primes = primes + 1
    for multiple = n * n, 400000, n do sieve[multiple] = true end
  end
end

local function element(i, j)
  local sum = i + j - 2
  return 1.0 / (sum * (sum + 1) / 2 + i)
end
local vector, product = {}, {}
for i = 1, 200 do vector[i] = 1.0 end
for _ = 1, 100 do
  for i = 1, 200 do
    local sum = 0.0
    for j = 1, 200 do sum = sum + element(i, j) * vector[j] end
    product[i] = sum
  end
  vector, product = product, vector
  local largest = math.max(unpack(vector))
  for i = 1, 200 do vector[i] = vector[i] / largest end
end

local words = ffi.new("uint64_t[1024]")
local wide = 0x9e3779b97f4a7c15ULL
for n = 0, 3000000 / part do
  wide = wide * 6364136223846793005ULL + 1442695040888963407ULL
  local slot = bit.band(n, 1023)
  words[slot] = words[slot] + bit.bxor(wide, bit.rshift(wide, 29))
end
local folded = 0ULL
for n = 0, 1023 do folded = folded * 31ULL + words[n] end

local parts = {}
for n = 1, 20000 do parts[#parts + 1] = string.format("%x", n) end
local text = table.concat(parts, " ")
local _, letters = text:gsub("[a-f]+", string.upper)
print(hash, primes, string.format("%.17g %.17g", vector[1], vector[200]), tostring(folded), #text, letters)
