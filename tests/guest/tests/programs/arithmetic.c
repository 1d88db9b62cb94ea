/* Arithmetic of many kinds; one line of results each, the same wherever the compiler is right. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 0x9e3779b97f4a7c15;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t sum = 0xcbf29ce484222325;

static void mix(uint64_t value)
{
	sum = (sum ^ value) * 0x100000001b3;
}

static void show(const char *name)
{
	printf("%s %016llx\n", name, (unsigned long long)sum);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void integers(void)
{
	for (int i = 0; i < 200000; i++) {
		uint64_t a = next(), b = next() | 1;
		unsigned __int128 wide = (unsigned __int128)a * b;

		mix((uint64_t)(wide >> 64));
		mix(a / b + a % (b >> (a & 31) | 1));
		mix((uint64_t)((int64_t)a / (int64_t)(b >> 40 | 1)));
		mix((uint64_t)(((unsigned __int128)a << 64 | b) / (a >> 7 | 1)));
		mix((uint16_t)a * (int8_t)b + (int16_t)(a >> 9));
		mix(a << (b & 63) | a >> (-b & 63));
		mix((uint64_t)__builtin_popcountll(a) << 32 | (unsigned)__builtin_clzll(b));
		mix(__builtin_bswap64(a) - (uint32_t)__builtin_ctzll(a | 1ull << 63));
	}
	show("integers");
}

static void bits_of(double value)
{
	uint64_t bits;

	/* The sign of a NaN is nobody's promise. */
	if (value != value)
		value = 1.5;
	memcpy(&bits, &value, sizeof bits);
	mix(bits);
}

static void floats(void)
{
	long double wide = 1.0L;

	for (int i = 0; i < 200000; i++) {
		double a = (double)(int64_t)next() / 65536.0, b = (double)(next() >> 11);
		float c = (float)a, d = (float)b;

		bits_of(a * b + a / (b + 1.0));
		bits_of(sqrt(fabs(a)) - floor(b / 3.0) + rint(a));
		bits_of((double)(c * d - c / (d + 1.0f)));
		mix((uint64_t)(int64_t)(a / 1e6) + (uint64_t)(int32_t)c % 7);
		wide = wide * 1.000001L + (long double)a / 1e15L;
		bits_of((double)wide);
	}
	printf("floats %a %016llx\n", (double)wide, (unsigned long long)sum);
}

static void vectors(void)
{
	enum { SIZE = 4096 };
	static uint8_t bytes[SIZE], other[SIZE];
	static int16_t halves[SIZE];
	static float singles[SIZE];

	for (int i = 0; i < SIZE; i++) {
		bytes[i] = (uint8_t)next();
		other[i] = (uint8_t)next();
		halves[i] = (int16_t)next();
		singles[i] = (float)(int32_t)next();
	}
	for (int round = 0; round < 200; round++) {
		uint32_t difference = 0;
		int32_t product = 0;
		float highest = 0;

		for (int i = 0; i < SIZE; i++) {
			difference += (uint32_t)abs(bytes[i] - other[i]);
			product += halves[i] * halves[SIZE - 1 - i] >> 4;
			highest = highest > singles[i] ? highest : singles[i];
			bytes[i] = (uint8_t)(bytes[i] * 3 + (other[i] > 127 ? 1 : round));
			halves[i] = (int16_t)(halves[i] + bytes[i]);
			singles[i] = singles[i] * 0.75f + (float)bytes[i];
		}
		mix(difference);
		mix((uint32_t)product);
		bits_of(highest);
	}
	show("vectors");
}

static void memory(void)
{
	enum { COUNT = 100000 };
	uint32_t *numbers = malloc(COUNT * sizeof *numbers);
	char text[256];

	if (!numbers)
		exit(1);
	for (int i = 0; i < COUNT; i++)
		numbers[i] = (uint32_t)next();
	qsort(numbers, COUNT, sizeof *numbers, compare);
	for (int i = 0; i < COUNT; i++)
		mix(numbers[i]);
	for (int i = 0; i < 20000; i++) {
		int length = snprintf(text, sizeof text, "%d %.17g %s %x", i, 1.0 / (i + 1), "text", numbers[i]);

		memmove(text + 3, text, (size_t)length + 1);
		mix((uint64_t)strtoul(text + 3, NULL, 10) + strlen(text + 3));
		mix((uint64_t)(strchr(text + 3, 't') - text));
	}
	free(numbers);
	show("memory");
}

int main(void)
{
	integers();
	floats();
	vectors();
	memory();
	return 0;
}
