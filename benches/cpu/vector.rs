//! Doubles, and vectors of SSE2 and AVX2. Nothing is fused or reordered, so that results are equal
//! to the last bit.

use std::arch::x86_64::*;
use std::error::Error;
use std::hint::black_box;

use crate::{Random, Work, mix};

/// A product of matrices of doubles, row by column.
pub fn matmul() -> Work {
    const N: usize = 200;
    let mut random = Random::new(8);
    let mut matrix = || -> Vec<f64> { (0..N * N).map(|_| unit(&mut random)).collect() };
    let (a, b) = (matrix(), matrix());
    Work::new(move || {
        let (a, b) = (black_box(&a[..]), black_box(&b[..]));
        let mut result = 0;
        for row in a.chunks_exact(N) {
            for column in 0..N {
                let mut sum = 0.0;
                for (x, y) in row.iter().zip(b[column..].iter().step_by(N)) {
                    sum += x * y;
                }
                result = mix(result, f64::to_bits(sum));
            }
        }
        result
    })
}

/// From -1 to 1.
fn unit(random: &mut Random) -> f64 {
    (random.next() >> 12) as f64 / (1_u64 << 51) as f64 - 1.0
}

#[derive(Clone, Copy)]
struct Body {
    place: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

/// Bodies that attract each other: products, square roots, divisions.
pub fn nbody() -> Work {
    let mut random = Random::new(9);
    let mut three = |scale: f64| [(); 3].map(|()| unit(&mut random) * scale);
    let start: [Body; 5] = std::array::from_fn(|number| Body {
        place: three(10.0),
        speed: three(0.3),
        mass: 1.0 / (1 + number) as f64,
    });
    Work::new(move || {
        let mut bodies = black_box(start);
        for _ in 0..60_000 {
            step(&mut bodies, 1e-3);
        }
        bodies
            .iter()
            .flat_map(|body| body.place)
            .fold(0, |all, x| mix(all, x.to_bits()))
    })
}

fn step(bodies: &mut [Body; 5], time: f64) {
    for i in 0..bodies.len() {
        for j in i + 1..bodies.len() {
            let way: [f64; 3] = std::array::from_fn(|k| bodies[i].place[k] - bodies[j].place[k]);
            let square = way[0] * way[0] + way[1] * way[1] + way[2] * way[2] + 1e-2;
            let pull = time / (square * square.sqrt());
            let (left, right) = (bodies[j].mass * pull, bodies[i].mass * pull);
            for k in 0..3 {
                bodies[i].speed[k] -= way[k] * left;
                bodies[j].speed[k] += way[k] * right;
            }
        }
    }
    for body in bodies {
        for k in 0..3 {
            body.place[k] += time * body.speed[k];
        }
    }
}

/// Floats of the vectors' work, 64 KiB each.
const FLOATS: usize = 16 << 10;
const PASSES: u32 = 600;

fn floats() -> [Vec<f32>; 3] {
    let mut random = Random::new(10);
    [(); 3].map(|()| (0..FLOATS).map(|_| unit(&mut random) as f32).collect())
}

fn result(floats: &[f32], integers: u64) -> u64 {
    floats
        .iter()
        .step_by(13)
        .fold(integers, |all, x| mix(all, u64::from(x.to_bits())))
}

/// Four floats and four integers at a time.
pub fn sse2() -> Work {
    let [a, b, start] = floats();
    Work::new(move || {
        let mut c = start.clone();
        let mut sums = [0_u32; 4];
        // SAFETY: every pointer is to a chunk of four floats or integers; x86-64 has SSE2.
        unsafe {
            let mut sum = _mm_setzero_si128();
            for _ in 0..PASSES {
                for ((a, b), c) in
                    (a.chunks_exact(4).zip(b.chunks_exact(4))).zip(c.chunks_exact_mut(4))
                {
                    let x = _mm_loadu_ps(a.as_ptr());
                    let y = _mm_loadu_ps(b.as_ptr());
                    let z = _mm_loadu_ps(c.as_ptr());
                    let z = _mm_add_ps(_mm_mul_ps(z, x), y);
                    let z = _mm_max_ps(_mm_min_ps(z, _mm_set1_ps(2.0)), _mm_set1_ps(-2.0));
                    _mm_storeu_ps(c.as_mut_ptr(), z);
                    let bits = _mm_castps_si128(z);
                    sum = _mm_add_epi32(sum, _mm_xor_si128(_mm_srli_epi32::<7>(bits), bits));
                    sum = _mm_shuffle_epi32::<0b01_00_11_10>(sum);
                }
            }
            _mm_storeu_si128(sums.as_mut_ptr().cast(), sum);
        }
        result(&c, sums.iter().fold(0, |all, n| mix(all, u64::from(*n))))
    })
}

/// Eight floats and eight integers at a time.
pub fn avx2() -> Result<Work, Box<dyn Error>> {
    if !is_x86_feature_detected!("avx2") {
        return Err("skip: this processor has no AVX2".into());
    }
    let [a, b, start] = floats();
    Ok(Work::new(move || {
        let mut c = start.clone();
        // SAFETY: AVX2 is there.
        let integers = unsafe { avx2_passes(&a, &b, &mut c) };
        result(&c, integers)
    }))
}

#[target_feature(enable = "avx2")]
fn avx2_passes(a: &[f32], b: &[f32], c: &mut [f32]) -> u64 {
    let mut sum = _mm256_setzero_si256();
    let turn = _mm256_setr_epi32(3, 0, 5, 6, 7, 4, 1, 2);
    for _ in 0..PASSES {
        for ((a, b), c) in (a.chunks_exact(8).zip(b.chunks_exact(8))).zip(c.chunks_exact_mut(8)) {
            // SAFETY: every pointer is to a chunk of eight floats.
            let (x, y, z) = unsafe {
                (
                    _mm256_loadu_ps(a.as_ptr()),
                    _mm256_loadu_ps(b.as_ptr()),
                    _mm256_loadu_ps(c.as_ptr()),
                )
            };
            let z = _mm256_add_ps(_mm256_mul_ps(z, x), y);
            let z = _mm256_max_ps(_mm256_min_ps(z, _mm256_set1_ps(2.0)), _mm256_set1_ps(-2.0));
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(c.as_mut_ptr(), z) };
            let bits = _mm256_castps_si256(z);
            sum = _mm256_add_epi32(sum, _mm256_xor_si256(_mm256_srli_epi32::<7>(bits), bits));
            sum = _mm256_permutevar8x32_epi32(sum, turn);
        }
    }
    let mut sums = [0_u32; 8];
    // SAFETY: eight integers.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum) };
    sums.iter().fold(0, |all, n| mix(all, u64::from(*n)))
}
