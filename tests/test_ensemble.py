import copy
import itertools
import pickle

import pytest
import torch

from vae_anomaly.ensemble import Ensemble, _replace, _twin, same_tensors, stacked
from vae_anomaly.likelihoods import LIKELIHOODS, Blocks
from vae_anomaly.neighbours import half_squared_lengths
from vae_anomaly.priors import PRIORS
from vae_anomaly.scores import SCORES, scores_for, with_shares
from vae_anomaly.vae import VAE, Terms


@pytest.fixture
def x(generator):
    return torch.rand(7, 5, generator=generator)


@pytest.fixture
def eps(generator):
    return torch.randn(3, 1, 2, generator=generator)


@pytest.fixture
def three(make_vae):
    return [make_vae(seed=seed) for seed in range(3)]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_ensemble_of_one_has_the_terms_of_the_vae(likelihood, prior, make_vae, x, eps):
    vae = make_vae(likelihood=likelihood, prior=prior)
    terms = Ensemble([vae]).map(VAE.terms, x, eps)
    torch.testing.assert_close([values[0] for values in terms], list(vae.terms(x, eps)))


@pytest.mark.parametrize("name", scores_for(images=False))
def test_ensemble_of_one_has_the_scores_of_the_vae(name, make_vae, x, eps):
    vae = make_vae()
    (scores,) = Ensemble([vae]).map(SCORES[name].function, x, eps)
    torch.testing.assert_close(scores, SCORES[name].function(vae, x, eps))


@pytest.mark.parametrize("name", scores_for(images=False))
def test_map_is_the_loop_over_members(name, three, x, eps):
    ensemble, score = Ensemble(three), SCORES[name].function
    for members in (three, ensemble.members()):
        looped = torch.stack([score(member, x, eps) for member in members])
        torch.testing.assert_close(ensemble.map(score, x, eps), looped)


def test_map_can_give_each_member_its_own_arguments(three, generator, eps):
    own = torch.rand(3, 7, 5, generator=generator)
    looped = torch.stack([vae.elbo(rows, eps) for vae, rows in zip(three, own, strict=True)])
    torch.testing.assert_close(Ensemble(three).map(VAE.elbo, own, eps, in_dims=(0, None)), looped)


def test_map_stacks_named_tuples_and_dicts(three, x, eps):
    ensemble = Ensemble(three)
    terms = ensemble.map(VAE.terms, x, eps)
    assert terms.log_px_z.shape == (3, 3, 7)
    assert ensemble.map(lambda vae, rows: {"mean": vae.encode(rows).mean}, x)["mean"].shape == (3, 7, 2)


def test_gradients_of_a_member_do_not_depend_on_its_siblings(three, x, eps):
    together, alone = Ensemble(three), Ensemble(three[1:2])
    (-together.map(VAE.elbo, x, eps).sum()).backward()
    (-alone.map(VAE.elbo, x, eps).sum()).backward()
    for name, value in alone.params.items():
        torch.testing.assert_close(together.params[name].grad[1], value.grad[0])


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_joint_is_the_loop_over_members(likelihood, complete, make_vae, generator):
    """Of samples of their own, several draws for each, and of the gradients."""
    blocks = (
        Blocks(2, 1, (2,)) if likelihood == "mixed" else Blocks(0, 0, (2, 3)) if likelihood == "categorical" else None
    )
    likelihoods = [LIKELIHOODS[likelihood]((5,), blocks, min_scale=0.1 * seed) for seed in range(1, 4)]
    double = torch.float64
    members = [make_vae(likelihood=likelihoods[seed], seed=seed, mask_input=True, dtype=double) for seed in range(3)]
    x = torch.rand(3, 7, 5, generator=generator, dtype=double)
    eps = torch.randn(4, 3, 7, 2, generator=generator, dtype=double)
    if not complete:
        x[torch.rand(x.shape, generator=generator) < 0.3] = torch.nan
    ensemble = Ensemble(members)
    joint = ensemble.joint()
    joint.complete = complete
    together = joint.elbo_terms(x, eps)
    looped = [vae.elbo_terms(x[index], eps[:, index]) for index, vae in enumerate(members)]
    for found, wanted in zip(together, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(wanted))
    (together[0] - together[1]).sum().backward()
    sum((terms[0] - terms[1]).sum() for terms in looped).backward()
    for name, value in ensemble.params.items():
        torch.testing.assert_close(
            value.grad, torch.stack([dict(vae.named_parameters())[name].grad for vae in members])
        )


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", ["standard_normal", "vamp"])
@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if hasattr(score.function, "for_all_members")])
def test_scores_for_all_members_are_those_of_each(name, holes, prior, likelihood, make_vae, generator):
    """Without vmap: of samples that they share, and of samples of their own."""
    blocks = {"mixed": Blocks(2, 1, (2,)), "categorical": Blocks(0, 0, (2, 3))}.get(likelihood)
    px = [LIKELIHOODS[likelihood]((5,), blocks, min_scale=0.1 * seed) for seed in range(1, 4)]
    ensemble = Ensemble([make_vae(likelihood=px[seed], seed=seed, prior=prior, n_codes=40) for seed in range(3)])
    for value in ensemble.buffers.values():
        if value.is_floating_point():
            value += 0.1 + torch.rand(value.shape, generator=generator)
    for vae in ensemble.views():
        vae.exemplar_lengths.copy_(half_squared_lengths(vae.exemplars, vae.compared))
    x, eps = torch.rand(3, 7, 5, generator=generator), torch.randn(4, 1, 2, generator=generator)
    x[torch.rand(x.shape, generator=generator) < holes] = torch.nan
    ensemble = ensemble.told(complete=not holes, imputation_steps=2 if holes else 0)
    functions = SCORES[name].function, with_shares(SCORES[name])
    assert all(hasattr(function, "for_all_members") for function in functions)
    with torch.no_grad():
        for function, (own, dim) in itertools.product(functions, ((x, 0), (x[0], None))):
            found = ensemble.map(function, own, eps, in_dims=(dim, None), together=True)
            members = ensemble.views()
            wanted = [function(vae, own if dim is None else own[index], eps) for index, vae in enumerate(members)]
            torch.testing.assert_close(found, stacked(wanted))


def test_what_an_ensemble_is_told_does_not_reach_views_that_were_made_before(make_vae):
    ensemble = Ensemble([make_vae(seed=seed) for seed in range(2)])
    ensemble.views()
    assert [vae.imputation_steps for vae in ensemble.told(imputation_steps=3).views()] == [3, 3]


def test_not_every_ensemble_has_a_joint_vae(make_vae):
    """The mixture priors, and networks with convolutions."""
    images = VAE((36,), 2, image_shape=(1, 6, 6), hidden=(8,))
    assert Ensemble([images]).joint() is None
    assert [name for name in PRIORS if Ensemble([make_vae(prior=name)]).joint() is not None] == ["standard_normal"]


def test_views_follow_the_ensemble(three, x, eps):
    ensemble = Ensemble(three)
    first = ensemble.views()
    assert ensemble.views() is first
    with torch.no_grad():
        ensemble.params["encoder.0.weight"].add_(1.0)
        torch.testing.assert_close(first[1].encoder[0].weight, three[1].encoder[0].weight + 1.0)
    ensemble.buffers["usual_neg_elbo"] = torch.full((3,), 7.0)
    assert float(ensemble.views()[2].usual_neg_elbo) == 7.0


def test_members_are_told_how_rows_are_each_time_by_themselves(three, x, eps):
    ensemble = Ensemble(three)
    told = ensemble.told(imputation_steps=3)
    assert ensemble.told(imputation_steps=3) is told is not ensemble.told(complete=True)
    assert {vae.imputation_steps for vae in told.views()} == {3}
    assert {vae.complete for vae in ensemble.told(complete=True).views()} == {True}
    assert {(vae.imputation_steps, vae.complete) for vae in ensemble.views()} == {(0, False)}
    told.buffers["usual_neg_elbo"] = torch.full((3,), 7.0)
    assert float(ensemble.views()[2].usual_neg_elbo) == 7.0
    ensemble.to("cpu")
    assert ensemble.told(imputation_steps=3) is not told
    assert ensemble.told(imputation_steps=3).params is ensemble.params


def test_an_ensemble_is_pickled_and_copied_without_its_views(three, x, eps):
    ensemble = Ensemble(three)
    bare = len(pickle.dumps(ensemble))
    with torch.no_grad():
        wanted = ensemble.map(VAE.elbo, x, eps)
        for again in (pickle.loads(pickle.dumps(ensemble)), copy.deepcopy(ensemble)):
            torch.testing.assert_close(again.map(VAE.elbo, x, eps), wanted, rtol=0, atol=0)
    assert len(pickle.dumps(ensemble)) == bare


def test_members_are_copies(three):
    ensemble = Ensemble(three)
    for vae, member in zip(three, ensemble.members(), strict=True):
        torch.testing.assert_close(dict(member.state_dict()), dict(vae.state_dict()), rtol=0, atol=0)
        with torch.no_grad():
            next(member.parameters()).add_(1.0)
    first = next(iter(ensemble.params.values()))
    torch.testing.assert_close(first[0], next(three[0].parameters()), rtol=0, atol=0)


# -- tensors and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_tensors_make_the_same_ensemble_again(likelihood, prior, make_vae, x, eps):
    options = {"likelihood": likelihood, "prior": prior}
    ensemble = Ensemble([make_vae(seed=seed, **options) for seed in range(2)])
    again = Ensemble.from_tensors(make_vae(seed=9, **options), ensemble.tensors())
    assert again.n_estimators == 2
    torch.testing.assert_close(again.tensors(), ensemble.tensors(), rtol=0, atol=0)
    torch.testing.assert_close(again.map(VAE.elbo, x, eps), ensemble.map(VAE.elbo, x, eps), rtol=0, atol=0)


def test_from_tensors_takes_a_skeleton_without_memory(three, x, eps):
    ensemble = Ensemble(three)
    with torch.device("meta"):
        skeleton = VAE((5,), 2, hidden=(8, 8))
    again = Ensemble.from_tensors(skeleton, ensemble.tensors())
    torch.testing.assert_close(again.map(VAE.elbo, x, eps), ensemble.map(VAE.elbo, x, eps), rtol=0, atol=0)


def test_from_tensors_leaves_the_skeleton_as_it_was(three, x, eps):
    skeleton = three[0]
    before = skeleton.elbo(x, eps)
    Ensemble.from_tensors(skeleton, Ensemble(three).tensors())
    torch.testing.assert_close(skeleton.elbo(x, eps), before, rtol=0, atol=0)


WEIGHT = "decoder.0.weight"
CHANGES = {
    "missing": lambda tensors: tensors.pop(WEIGHT),
    "superfluous": lambda tensors: tensors.update(other=torch.zeros(3)),
    "wider": lambda tensors: tensors.update({WEIGHT: torch.zeros(3, 8, 4)}),
    "transposed": lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].mT}),
    "fewer members": lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT][:2]}),
    "without members": lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT][0]}),
    "another type": lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].double()}),
    "all gone": lambda tensors: tensors.clear(),
    "all without members": lambda tensors: tensors.update({name: value[0] for name, value in tensors.items()}),
    "first a number": lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(())}),
    "no member left": lambda tensors: tensors.update({name: value[:0] for name, value in tensors.items()}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit_are_refused(change, three):
    tensors = Ensemble(three).tensors()
    CHANGES[change](tensors)
    with pytest.raises(ValueError, match=r"tensor"):
        Ensemble.from_tensors(three[0], tensors)


def test_refusal_of_another_type_names_the_types(three):
    tensors = Ensemble(three).tensors()
    CHANGES["another type"](tensors)
    with pytest.raises(ValueError, match=r"float64.*float32"):
        Ensemble.from_tensors(three[0], tensors)


def test_to_moves_nothing_but_the_place(three, x, eps):
    ensemble = Ensemble(three)
    before, requires_grad = ensemble.map(VAE.elbo, x, eps), [value.requires_grad for value in ensemble.params.values()]
    assert ensemble.to("cpu") is ensemble
    assert ensemble.device == torch.device("cpu")
    assert [value.requires_grad for value in ensemble.params.values()] == requires_grad
    assert all(value.is_leaf for value in ensemble.params.values())
    torch.testing.assert_close(ensemble.map(VAE.elbo, x, eps), before, rtol=0, atol=0)


def test_members_with_convolutions_run_in_turn_and_give_the_same():
    shape, n_pixels = (1, 6, 6), 36
    members = [
        VAE((n_pixels,), 2, image_shape=shape, hidden=(8,), generator=torch.Generator().manual_seed(seed))
        for seed in range(3)
    ]
    ensemble = Ensemble(members)
    x = torch.randn(3, 5, n_pixels, generator=torch.Generator().manual_seed(9))
    eps = torch.zeros(1, 1, 2)
    together = ensemble.map(VAE.elbo_terms, x, eps, in_dims=(0, None))
    for index, member in enumerate(members):
        for found, wanted in zip(together, member.elbo_terms(x[index], eps), strict=True):
            torch.testing.assert_close(found[index], wanted)
    terms = ensemble.map(VAE.terms, x[0], eps)
    assert isinstance(terms, Terms)
    assert terms.kl.shape == (3, 5)
    gradient = torch.autograd.grad(together[0].sum(), ensemble.params["encoder.layers.0.weight"])[0]
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()


def modules_within(value, seen):
    """All modules that can be reached from a value, by whatever attribute."""
    if id(value) in seen or isinstance(value, torch.Tensor | str | type):
        return
    seen[id(value)] = value
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, tuple | list):
        inner = value
    elif isinstance(value, torch.nn.Module):
        inner = vars(value).values()
    else:
        return
    for one in inner:
        modules_within(one, seen)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("image", [False, True])
def test_a_twin_has_tensors_in_common_and_no_module(prior, image, make_vae):
    shape = {"event_shape": (36,), "image_shape": (1, 6, 6)} if image else {}
    vae = make_vae(prior=prior, likelihood="student_t", **shape)
    twin, found = _twin(vae), {}
    modules_within(twin, found)
    reached = {key for key, value in found.items() if isinstance(value, torch.nn.Module)}
    assert reached == {id(module) for module in twin.modules()}
    assert not reached & {id(module) for module in vae.modules()}
    assert [type(module) for module in twin.modules()] == [type(module) for module in vae.modules()]
    assert same_tensors(list(twin.state_dict(keep_vars=True).values()), list(vae.state_dict(keep_vars=True).values()))
    before = copy.deepcopy(vae.state_dict())
    for name in before:
        _replace(twin, {name: torch.zeros(())})
    torch.testing.assert_close(vae.state_dict(), before)


def test_a_joint_view_sees_weights_that_change_in_their_place(three, x, eps):
    ensemble = Ensemble(three)

    def joint():
        with torch.no_grad():
            return ensemble.map(SCORES["neg_log_px_z"].function, x, eps, together=True)

    before = joint()
    for value in ensemble.params.values():
        value.data.mul_(1.5)
    after = joint()
    looped = torch.stack([SCORES["neg_log_px_z"].function(vae, x, eps) for vae in ensemble.members()])
    torch.testing.assert_close(after, looped.detach(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(after, before)
