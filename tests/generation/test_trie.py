import torch

from velm.generation.trie import Trie

EOS = 2


def follows(trie, state):
    return trie.forbid(torch.zeros(len(state), 9), state, 9).isfinite()


def test_only_what_leads_to_an_answer_may_follow():
    trie = Trie([(3,), (3, 4), (5, 4, 4), (3, 4)], eos_id=EOS, vocab_size=9)
    states = {(): torch.zeros(1, dtype=torch.int64)}
    for sentence, expected in (
        ((), [3, 5]), ((3,), [EOS, 4]), ((3, 4), [EOS]), ((5,), [4]), ((5, 4), [4]), ((5, 4, 4), [EOS]),
    ):  # fmt: skip
        if sentence:
            states[sentence] = trie.advance(states[sentence[:-1]], torch.tensor([sentence[-1]]))
        assert follows(trie, states[sentence])[0].nonzero().flatten().tolist() == expected


def test_rows_are_distinguished_and_scores_kept():
    trie = Trie([(3,), (4, 5)], eos_id=EOS, vocab_size=9)
    states = trie.advance(torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[3, 4], [4, 3]]))
    assert states.shape == (2, 2)
    scores = torch.randn(4, 9)
    kept = trie.forbid(scores, states.flatten(), 9)
    for row, token in enumerate((EOS, 5, 5, EOS)):
        assert kept[row].isfinite().nonzero().flatten().tolist() == [token]
        assert kept[row, token] == scores[row, token]


def test_a_word_that_leads_nowhere():
    trie = Trie([(3, 4)], eos_id=EOS, vocab_size=9)
    assert trie.advance(torch.tensor([0, 1]), torch.tensor([8, 0])).tolist() == [0, 0]
