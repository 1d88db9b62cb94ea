use super::*;

#[test]
fn references_are_counted_anywhere() {
    let mut counts = Counts::default();
    let far = u64::MAX / PIECE * PIECE - 1;
    assert_eq!((counts.end(), counts.clusters().next()), (0, None));
    assert!(counts.add(4094..4098));
    assert!(counts.add(4095..4096));
    assert!(counts.add(far..far + 1));
    // Pieces that share a place among the recent ones.
    let other = 4095 + RECENT * PIECE;
    assert!(counts.add_one(other, None) && counts.add_one(4095, None));
    assert_eq!(
        [4093, 4094, 4095, 4097].map(|at| counts.get(at)),
        [0, 1, 3, 1]
    );
    assert_eq!((counts.get(other), counts.get(other + 1)), (1, 0));
    let all = [4094, 4095, 4096, 4097, other, far];
    assert_eq!(counts.clusters().collect::<Vec<_>>(), all);
    let runs = [4094..4096, 4096..4098, other..other + 1, far..far + 1];
    assert_eq!(counts.used().collect::<Vec<_>>(), runs);
    assert_eq!(counts.end(), far + 1);
    let some = |first, most| counts.from(first, most).iter().map(|word| word.count());
    assert_eq!(some(4093, 100).collect::<Vec<_>>(), [0, 1, 3]);
    assert_eq!(some(4094, 1).collect::<Vec<_>>(), [1]);
    assert_eq!(some(5 * PIECE + 4000, 100).collect::<Vec<_>>(), [0; 96]);
}

#[test]
fn flags_are_compared_with_the_count() {
    let mut counts = Counts::default();
    let word = |counts: &Counts, at| counts.from(at, 1)[0];
    for (cluster, flags, wrong) in [
        (0, vec![Some(true)], false),
        (1, vec![Some(false)], true),
        (2, vec![Some(false), None], false),
        (3, vec![Some(true), None], true),
        (4, vec![Some(false), Some(true)], true),
        (5, vec![None], false),
    ] {
        for flag in &flags {
            counts.add_one(cluster, *flag);
        }
        let word = word(&counts, cluster);
        assert_eq!(word.count(), flags.len() as u64);
        assert_eq!(word.is_flagged_wrongly(), wrong, "{flags:?}");
    }
    // The count does not run into the flags.
    let mut full = Word(Word::COUNT | Word::ALONE);
    full.refer(None);
    assert_eq!(full, Word(Word::COUNT | Word::ALONE));
}

#[test]
fn memory_for_counting_is_bounded() {
    let mut counts = Counts::default();
    let most = PIECES as u64;
    // The first of them are enough to see what happens at the end.
    counts.pieces = vec![Box::default(); PIECES - 1];
    assert!(counts.add_one(most * PIECE, None));
    assert!(!counts.add_one(most * PIECE * 2, None));
    assert!(counts.add_one(most * PIECE + 1, None));
}
