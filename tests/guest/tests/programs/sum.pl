# Results that no version of Perl may change.
use strict;
use warnings;

my ($state, @words, %count) = (1);
for my $n (1 .. 60000) {
    $state = ($state * 1103515245 + 12345) % 2147483648;
    my $word = sprintf("%x", $state >> 12);
    push @words, $word;
    $count{substr($word, 0, 2)}++;
}
my $text = join(" ", sort @words);
(my $changed = $text) =~ s/([a-f]+)(\d+)/$2$1/g;
my $found = () = $changed =~ /\b(\d)(?=[a-f])/g;
my $reversed = reverse $changed;
my $sum = 0;
$sum = ($sum * 31 + ord) % 1000000007 for split //, substr($reversed, 0, 200000);
my $frequent = join ",", map { "$_=$count{$_}" } sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
printf "%d %d %d %s\n", length $changed, $found, $sum, unpack("%32C*", $changed . $frequent);
printf "%s\n", join " ", map { sprintf "%.10g", sqrt($_) / 3 } 1 .. 8;
