/*
 * Random bytes as programs: ring3 SECONDS PROCESSES SEED.
 *
 * Each process forks a child after the other; a child executes some hundred cases and lets signals
 * end each. A case is a page of code that may write to itself, random registers of which many point
 * into that page or one beside it, and random flags. Strict seccomp keeps the code from harm: a
 * system call other than read, write, exit and sigreturn kills the child. What a child executes
 * follows from SEED, the process's number and the child's, up to the timer.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CASES = 300, PAGE = 4096, LENGTH = 96, SIGNALS = 65 };

/* rax to r15 in the order of their numbers, where to go, flags. */
uint64_t registers[18] __attribute__((used));

static uint8_t *const code = (uint8_t *)0x10000000;
static uint8_t *const data = (uint8_t *)0x10001000;

/* Of all children. */
struct counters {
	uint64_t children, cases, signals[SIGNALS], killed, exited;
};
static struct counters *counters;

static uint64_t state;
static sigjmp_buf after;
static volatile sig_atomic_t inside;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state * 0x2545f4914f6cdd1d;
}

static void on_signal(int number)
{
	if (!inside) {
		if (number == SIGALRM)
			return;
		syscall(SYS_exit, 2);
	}
	inside = 0;
	__atomic_add_fetch(&counters->signals[number], 1, __ATOMIC_RELAXED);
	siglongjmp(after, 1);
}

/* Half of the cases have more of the bytes that begin the instructions with many forms. */
static void fill(uint8_t *at, size_t length)
{
	static const uint8_t leads[] = {
		0x0f, 0x0f, 0x0f, 0x66, 0xf2, 0xf3, 0x48, 0x4c, 0x41, 0xc4, 0xc5, 0x62, 0xf0, 0x64,
		0x8f, 0xd9, 0xdd, 0xff, 0xe8, 0xeb, 0x74, 0xc3, 0xa4, 0xab, 0xf7, 0xd3, 0x0f, 0x38,
	};
	int many = next() & 1;

	for (size_t i = 0; i < length; i++) {
		uint64_t r = next();

		at[i] = many && (r >> 59) < 11 ? leads[(r >> 8) % sizeof leads] : (uint8_t)(r >> 20);
	}
}

static void prepare(void)
{
	/* Now and then at the end, beyond which there is no code and then nothing. */
	size_t offset = next() % 8 ? next() % (PAGE - LENGTH) : PAGE - LENGTH - next() % 8;

	fill(code + offset, LENGTH);
	for (int i = 0; i < 16; i++) {
		uint64_t r = next();

		switch (r % 5) {
		case 0: registers[i] = next(); break;
		case 1: registers[i] = r >> 8 & 0xff; break;
		case 2: registers[i] = (uint64_t)code + (r >> 8) % PAGE; break;
		default: registers[i] = (uint64_t)data + (r >> 8) % PAGE; break;
		}
	}
	if (next() % 8)
		registers[4] = (uint64_t)data + PAGE / 2;
	registers[16] = (uint64_t)code + offset;
	/* The arithmetic flags and direction; rarely TF, NT, AC, ID. */
	registers[17] = next() & (next() % 16 ? 0xcd5 : 0x244dd5);
}

static void enter(void)
{
	__asm__ volatile(
		"push registers+136(%%rip)\n\t"
		"popfq\n\t"
		"mov registers(%%rip), %%rax\n\t"
		"mov registers+8(%%rip), %%rcx\n\t"
		"mov registers+16(%%rip), %%rdx\n\t"
		"mov registers+24(%%rip), %%rbx\n\t"
		"mov registers+32(%%rip), %%rsp\n\t"
		"mov registers+40(%%rip), %%rbp\n\t"
		"mov registers+48(%%rip), %%rsi\n\t"
		"mov registers+56(%%rip), %%rdi\n\t"
		"mov registers+64(%%rip), %%r8\n\t"
		"mov registers+72(%%rip), %%r9\n\t"
		"mov registers+80(%%rip), %%r10\n\t"
		"mov registers+88(%%rip), %%r11\n\t"
		"mov registers+96(%%rip), %%r12\n\t"
		"mov registers+104(%%rip), %%r13\n\t"
		"mov registers+112(%%rip), %%r14\n\t"
		"mov registers+120(%%rip), %%r15\n\t"
		"jmp *registers+128(%%rip)"
		::: "memory");
}

static void child(void)
{
	static uint8_t stack[64 << 10];
	const stack_t other = { .ss_sp = stack, .ss_size = sizeof stack };
	const int numbers[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGALRM };
	const struct itimerval tick = { { 0, 10000 }, { 0, 10000 } };
	const struct rlimit limit = { 1, 2 }, none = { 0, 0 };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_NODEFER };
	int null = open("/dev/null", O_RDWR);

	for (int i = 0; i < 3; i++)
		dup2(null, i);
	close(null);
	sigaltstack(&other, NULL);
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		sigaction(numbers[i], &action, NULL);
	setrlimit(RLIMIT_CORE, &none);
	setrlimit(RLIMIT_CPU, &limit);
	setitimer(ITIMER_REAL, &tick, NULL);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
		_exit(3);
	fill(code, PAGE);
	fill(data, PAGE);
	for (volatile int i = 0; i < CASES; i++) {
		prepare();
		if (sigsetjmp(after, 0) == 0) {
			__atomic_add_fetch(&counters->cases, 1, __ATOMIC_RELAXED);
			inside = 1;
			enter();
		}
		inside = 0;
	}
	syscall(SYS_exit, 0);
}

static void work(uint64_t seed, time_t end)
{
	for (uint64_t n = 1; time(NULL) < end; n++) {
		int status;
		pid_t pid = fork();

		if (pid == 0) {
			state = (seed << 32 | n) * 0x9e3779b97f4a7c15;
			child();
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			_exit(1);
		if (WIFEXITED(status) && WEXITSTATUS(status) == 3)
			_exit(1);
		__atomic_add_fetch(&counters->children, 1, __ATOMIC_RELAXED);
		__atomic_add_fetch(WIFEXITED(status) ? &counters->exited : &counters->killed, 1, __ATOMIC_RELAXED);
	}
	_exit(0);
}

int main(int count, char **words)
{
	if (count != 4)
		return 2;
	const time_t end = time(NULL) + atoi(words[1]);
	const int processes = atoi(words[2]);
	const uint64_t seed = strtoull(words[3], NULL, 0);
	int failed = 0, status;

	counters = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counters == MAP_FAILED)
		return 1;
	if (mmap(code, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return 1;
	for (int i = 0; i < processes; i++)
		if (fork() == 0)
			work(seed * 1000 + i, end);
	while (wait(&status) > 0)
		failed += status != 0;
	printf("children %llu cases %llu ill %llu trap %llu fpe %llu bus %llu segv %llu alrm %llu killed %llu failed %d\n",
	       (unsigned long long)counters->children, (unsigned long long)counters->cases,
	       (unsigned long long)counters->signals[SIGILL], (unsigned long long)counters->signals[SIGTRAP],
	       (unsigned long long)counters->signals[SIGFPE], (unsigned long long)counters->signals[SIGBUS],
	       (unsigned long long)counters->signals[SIGSEGV], (unsigned long long)counters->signals[SIGALRM],
	       (unsigned long long)counters->killed, failed);
	return failed != 0;
}
