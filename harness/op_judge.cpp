#include "harness/op_judge.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "harness/op_memory.h"
#include "harness/routing.h"
#include "harness/taps.h"
#include "reference/attention.h"
#include "reference/backend.h"
#include "reference/gate.h"
#include "reference/linear.h"
#include "reference/moe.h"
#include "reference/rope.h"

namespace dsv2::harness {
namespace {

using reference::Matrix;
using Values = Matrix<double>;

constexpr double kFrameworkFactor = 2.0;  // golden/FORMAT.md, bfloat16
constexpr double kLargestSlope = 1.13;    // of silu, gelu and its tanh form; relu has 1

Values values_of(const Tensor& t) {
  const std::int64_t cols = t.dim(-1);
  const std::int64_t rows = t.size() / cols;
  return reference::widen_rows<double>({t.dtype(), {rows, cols}, t.data()}, 0, rows);
}

/// (x^2) (W^2)^T, W [out, in] taken a block of rows at a time.
Values squares(const Values& x2, const TensorView& weight) {
  constexpr std::int64_t kBlock = 1024;
  const std::int64_t out = weight.dim(0);
  Values sums(x2.rows(), out);
  for (std::int64_t first = 0; first < out; first += kBlock) {
    const std::int64_t count = std::min(kBlock, out - first);
    const Values w = reference::widen_rows<double>(weight, first, count);
    sums.middleCols(first, count).noalias() = x2 * w.cwiseAbs2().transpose();
  }
  return sums;
}

std::vector<double> flat(const Values& m) { return {m.data(), m.data() + m.size()}; }

TensorView matrix_of(const Tensor& stack, std::int64_t e) {
  TensorView one{stack.dtype(), {stack.dim(-2), stack.dim(-1)}, nullptr};
  one.data = static_cast<const char*>(stack.data()) + e * one.bytes();
  return one;
}

/// Products of x [n,.] with a matrix.
Values product(const Values& x, const TensorView& weight) { return reference::linear<double>(x, {weight, {}}); }

/// Of one MLP: the sum of squares of what each output sums. What the activation has lost before counts as a term.
Values mlp_squares(const Values& x, const TensorView& gate_proj, const TensorView& up_proj, const TensorView& down_proj,
                   Activation activation) {
  const Values x2 = x.cwiseAbs2();
  const Values g = product(x, gate_proj), u = product(x, up_proj);
  const Values f = g.unaryExpr([=](double z) { return reference::activate(activation, z); });
  const Values act2 = f.cwiseProduct(u).cwiseAbs2();
  const Values lost2 = kLargestSlope * kLargestSlope * squares(x2, gate_proj).cwiseProduct(u.cwiseAbs2()) +
                       f.cwiseAbs2().cwiseProduct(squares(x2, up_proj));
  return squares(act2 + lost2, down_proj);
}

std::vector<double> mlp_root(const OpProblem& p) {
  const Values x = values_of(p["x"]);
  if (!p.has("topk_idx"))
    return flat(mlp_squares(x, p["gate_proj"].view(), p["up_proj"].view(), p["down_proj"].view(), p.config.hidden_act)
                    .cwiseSqrt());
  const auto ids = p["topk_idx"].as<std::int64_t>();
  const std::int64_t k = p["topk_idx"].dim(1);
  Values sums = Values::Zero(x.rows(), x.cols());
  for (std::int64_t e = 0; e < p["gate_proj"].dim(0); ++e) {
    std::vector<Eigen::Index> tokens;
    std::vector<double> weight;
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] == e)
        tokens.push_back(static_cast<Eigen::Index>(i) / k),
            weight.push_back(p["topk_weight"].at(static_cast<std::int64_t>(i)));
    if (tokens.empty()) continue;
    const Values chosen = x(tokens, Eigen::all);
    const Values s = mlp_squares(chosen, matrix_of(p["gate_proj"], e), matrix_of(p["up_proj"], e),
                                 matrix_of(p["down_proj"], e), p.config.hidden_act);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      sums.row(tokens[i]) += weight[i] * weight[i] * s.row(static_cast<Eigen::Index>(i));
  }
  return flat(sums.cwiseSqrt());
}

std::vector<double> linear_root(const OpProblem& p, std::string_view rows) {
  Values sums = squares(values_of(p[rows]).cwiseAbs2(), p["weight"].view());
  if (p.has("bias")) sums.rowwise() += values_of(p["bias"]).row(0).cwiseAbs2();
  return flat(sums.cwiseSqrt());
}

/// |x| of the pair that makes each rotated element.
std::vector<double> rope_root(const OpProblem& p, const Tensor& x, const OpOutput& out, double amplitude) {
  const std::int64_t heads = out.shape[1], r = out.shape[2], row = x.dim(1), width = row / heads;
  std::vector<double> root;
  for (std::int64_t n = 0; n < out.shape[0]; ++n)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < r; ++i) {
        const std::int64_t at = n * row + (h + 1) * width - r, pair = i % (r / 2);
        const double a = x.at(at + (p.config.use_mla ? 2 * pair : pair)),
                     b = x.at(at + (p.config.use_mla ? 2 * pair + 1 : pair + r / 2));
        root.push_back(amplitude * std::hypot(a, b));
      }
  return root;
}

/// Terms p_t v_t, each with what its score has lost: a score off by e changes its probability by a factor of 1 + e.
std::vector<double> attention_root(const OpProblem& p) {
  const std::int64_t B = p.call.batch, S = p.call.tokens, T = p.call.total, H = p["q1"].dim(1), K = p["k1"].dim(1);
  const Tensor& values = p.has("v") ? p["v"] : p["k1"];
  const double scale = reference::softmax_scale(p.config);
  const auto cached = [&](const Tensor& t, std::int64_t b, std::int64_t head) {
    const std::int64_t heads = t.dim(1), C = t.dim(2), dim = t.dim(3);
    return reference::widen_rows<double>({t.dtype(), {B * heads * C, dim}, t.data()}, (b * heads + head) * C, T);
  };
  const auto queries = [&](const Tensor& t, std::int64_t b, std::int64_t h) {
    const std::int64_t d = t.dim(2);
    Values m(S, d);
    for (std::int64_t s = 0; s < S; ++s)
      for (std::int64_t i = 0; i < d; ++i) m(s, i) = t.at(((b * S + s) * H + h) * d + i);
    return m;
  };
  std::vector<double> root(static_cast<std::size_t>(B * S * H * values.dim(3)));
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t h = 0; h < H; ++h) {
      const std::int64_t group = h / (H / K);
      const Values q1 = queries(p["q1"], b, h), k1 = cached(p["k1"], b, group), v = cached(values, b, group);
      Values scores = q1 * k1.transpose(), lost2 = q1.cwiseAbs2() * k1.cwiseAbs2().transpose();
      if (p.has("q2")) {
        const Values q2 = queries(p["q2"], b, h), k2 = cached(p["k2"], b, 0);
        scores += q2 * k2.transpose();
        lost2 += q2.cwiseAbs2() * k2.cwiseAbs2().transpose();
      }
      scores *= scale;
      lost2 = scale * scale * lost2 + scores.cwiseAbs2();
      Values probabilities = scores;
      reference::masked_softmax(probabilities, p.call, b);
      // A lost score moves its own term and, through the sum, all others: by p (v_t - y).
      const Values y = probabilities * v;
      for (std::int64_t s = 0; s < S; ++s) {
        Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(v.cols());
        for (std::int64_t t = 0; t < T; ++t) {
          const double p2 = probabilities(s, t) * probabilities(s, t);
          if (p2 == 0) continue;
          sum += p2 * (v.row(t).cwiseAbs2() + lost2(s, t) * (v.row(t) - y.row(s)).cwiseAbs2());
        }
        for (std::int64_t i = 0; i < v.cols(); ++i)
          root[static_cast<std::size_t>(((b * S + s) * H + h) * v.cols() + i)] = std::sqrt(sum(i));
      }
    }
  return root;
}

/// How much a score changes, relative to itself, when its logit and the sum are rounded: in units.
double score_units(const Values& logits, std::int64_t row, std::int64_t e) {
  return 1 + std::fabs(logits(row, e)) + logits.row(row).cwiseAbs().maxCoeff();
}

double largest(const Tensor& t) {
  double most = 0;
  for (const double x : widen<double>(t.view()))
    if (std::isfinite(x)) most = std::max(most, std::fabs(x));
  return most;
}

/// Rows that meet a matrix, cached rows and probabilities are rounded to the dtype of the arithmetic; all else is f32
/// at every precision.
bool rounds_rows(std::string_view op) {
  return op == "attention" || op == "linear" || op == "lm_head" || op == "mla_absorb" || op == "experts" ||
         op == "shared_experts" || op == "mlp";
}

std::map<std::string, Tensor, std::less<>> run_reference(const OpProblem& p) {
  for (const OpKernel& kernel : reference::ops()) {
    if (kernel.op != p.op) continue;
    PoisonedMemory memory(p);
    const auto run = kernel.prepare(p, Options{}, memory);
    memory.poison(0);
    run();
    return memory.take_outputs();
  }
  fail("reference: op: expected one that it computes alone, found ", p.op);
}

/// The problem with every int8 cached array as the f32 numbers that it stands for; null where there is none.
std::unique_ptr<OpProblem> widened(const OpProblem& p) {
  const auto is_scales = [&](std::string_view name) {
    return name.ends_with("_scales") && p.has(name.substr(0, name.rfind('_')));
  };
  if (std::none_of(p.in.begin(), p.in.end(), [&](const auto& in) { return is_scales(in.first); })) return nullptr;
  auto wide =
      std::make_unique<OpProblem>(OpProblem{.op = p.op, .config = p.config, .call = p.call, .in = {}, .out = {}});
  for (const auto& [name, tensor] : p.in)
    if (!is_scales(name))
      wide->in[name] =
          p.has(scales_of(name)) ? widen_quantised(tensor.view(), p[scales_of(name)].view()) : tensor.clone();
  for (const OpOutput& out : p.out)
    if (!is_scales(out.name)) wide->out.push_back(out);
  return wide;
}

/// The problem as a framework sees it that keeps activations in bf16.
OpProblem rounded(const OpProblem& p) {
  OpProblem r{.op = p.op, .config = p.config, .call = p.call, .in = {}, .out = p.out};
  for (const auto& [name, tensor] : p.in)
    r.in[name] =
        tensor.dtype() == DType::f32 ? convert(convert(tensor.view(), DType::bf16).view(), DType::f32) : tensor.clone();
  return r;
}

}  // namespace

OpJudge::OpJudge(const OpCase& op_case, const OpProblem& problem)
    : case_(op_case),
      given_(problem),
      widened_(widened(problem)),
      problem_(widened_ ? *widened_ : problem),
      want_(run_reference(problem_)) {
  const OpProblem& p = problem_;
  const Config& c = p.config;
  // With int8 and int4 matrices rows are rounded to 15-bit integers or, where they are many, to bf16.
  const DType rows = !rounds_rows(p.op) ? DType::f32 : is_quantised(case_.dtype) ? DType::bf16 : case_.dtype;
  const auto bound = [&](std::string_view output, std::vector<double> root, DType dtype, std::int64_t reduction) {
    Bound b{std::move(root), dtype, reduction, 0};
    // Underflow: instructions on bf16 pairs flush what is below the smallest normal number, inputs included.
    const double lost =
        dtype == DType::bf16 ? std::numeric_limits<float>::min() : std::numeric_limits<float>::denorm_min();
    double factor = p.op == "rms_norm" ? 1 / std::sqrt(c.rms_norm_eps) : 1;  // what is lost is multiplied by
    for (const auto& [_, tensor] : p.in)
      if (tensor.dtype() != DType::i64) factor = std::max(factor, largest(tensor));
    b.floor = static_cast<double>(reduction) * lost * factor;
    bounds_.insert_or_assign(std::string(output), std::move(b));
  };
  const auto size_of_want = [&](std::string_view output) {
    std::vector<double> root = widen<double>(want_.find(output)->second.view());
    for (double& x : root) x = std::fabs(x);
    return root;
  };

  if (p.op == "rms_norm") {
    bound("y", size_of_want("y"), rows, p["x"].dim(1));
  } else if (p.op == "linear" || p.op == "gate" || p.op == "lm_head") {
    bound("y", linear_root(p, "x"), rows, p["weight"].dim(1));
  } else if (p.op == "rope") {
    const double amplitude = reference::rope_frequencies(c, 1).amplitude;
    bound("q_rope", rope_root(p, p["q"], p.out[0], amplitude), rows, 2);
    bound("k_rope", rope_root(p, p["k"], p.out[1], amplitude), rows, 2);
  } else if (p.op == "attention") {
    const std::int64_t d = p["q1"].dim(2) + (p.has("q2") ? p["q2"].dim(2) : 0);
    bound("y", attention_root(p), rows, p.call.total + d);
  } else if (p.op == "mla_absorb") {
    const std::int64_t H = c.num_attention_heads, R = c.kv_lora_rank, nope = c.qk_nope_head_dim, v = c.v_head_dim;
    const Values q2 = values_of(p["q"]).cwiseAbs2(), w2 = values_of(p["weight"]).cwiseAbs2();
    const Values attended2 = values_of(p["attended"]).cwiseAbs2().reshaped<Eigen::RowMajor>(p.rows(), H * R);
    Values absorbed(p.rows(), H * R), y(p.rows(), H * v);
    for (std::int64_t h = 0; h < H; ++h) {
      absorbed.middleCols(h * R, R) = q2.middleCols(h * c.qk_head_dim(), nope) * w2.middleRows(h * (nope + v), nope);
      y.middleCols(h * v, v) = attended2.middleCols(h * R, R) * w2.middleRows(h * (nope + v) + nope, v).transpose();
    }
    bound("q_latent", flat(absorbed.cwiseSqrt()), DType::f32, nope);
    bound("y", flat(y.cwiseSqrt()), rows, R);
  } else if (p.op == "gate_weight") {
    const Values logits = values_of(p["logits"]);
    std::vector<double> root = size_of_want("topk_weight");
    const auto ids = p["topk_idx"].as<std::int64_t>();
    const std::int64_t k = p["topk_idx"].dim(1);
    for (std::size_t i = 0; i < root.size(); ++i)
      root[i] *= score_units(logits, static_cast<std::int64_t>(i) / k, ids[i]);
    bound("topk_weight", std::move(root), rows, logits.cols());
  } else if (p.op == "experts" || p.op == "shared_experts" || p.op == "mlp") {
    const std::int64_t k = p.has("topk_idx") ? p["topk_idx"].dim(1) : 1;
    bound("y", mlp_root(p), rows, p["up_proj"].dim(-1) + p["up_proj"].dim(-2) + k);
  }

  // Below the smallest normal number what a framework keeps depends on its instructions.
  if (case_.dtype != DType::f32 && rounds_rows(p.op) && case_.fill != Fill::denormal) {
    const OpProblem framework = rounded(p);
    const auto given = run_reference(framework);
    const OpOutput& last = p.out.back();
    framework_error_ = relative_l2(convert(given.at(last.name).view(), DType::bf16).view(), want_.at(last.name).view());
  }
}

OpJudge::Verdict OpJudge::judge(const OpOutputs& got) const {
  Verdict verdict;
  for (const OpOutput& output : problem_.out) {
    const auto it = got.find(output.name);
    DSV2_CHECK(it != got.end(), problem_.op, ": output ", output.name, ": expected, found none");
    if (output.name == "topk_idx") {
      verdict.comparisons.push_back(compare_choice(it->second, verdict.ties));
    } else if (it->second.dtype == DType::s8) {
      const auto scales = got.find(scales_of(output.name));
      DSV2_CHECK(scales != got.end(), problem_.op, ": output ", scales_of(output.name), ": expected, found none");
      verdict.comparisons.push_back(compare_quantised(output, it->second, scales->second));
    } else {
      verdict.comparisons.push_back(compare(output, it->second));
    }
    verdict.comparisons.back().zeros = false;  // memory was poison: zeros were written
  }
  return verdict;
}

Comparison OpJudge::compare(const OpOutput& output, const TensorView& got) const {
  const Tensor& want = want_.at(output.name);
  const auto found = bounds_.find(output.name);
  if (found == bounds_.end()) {
    // Copies and sums of two: the nearest number of the type that they are stored in. Rows that are not the op's own
    // hold NaN on both sides.
    if (got.dtype == DType::i64) return compare_exact(output.name, got, want.view());
    const Tensor stored = convert(want.view(), got.dtype);
    return compare_bits(output.name, got, stored.view());
  }
  const Bound& b = found->second;
  Comparison c = compare_summed(output.name, got, want.view(), b.root, {b.dtype, b.reduction}, b.floor);
  if (framework_error_ > 0 && output.name == problem_.out.back().name) {
    const double share = c.relative_l2 / (kFrameworkFactor * framework_error_);
    if (!(share <= 1) && c.passed) {
      c.passed = false;
      c.reason = concat("relative L2 ", c.relative_l2, ", more than ", kFrameworkFactor, " x the framework's own ",
                        framework_error_);
    }
    c.budget_used = std::max(c.budget_used, std::isfinite(share) ? share : c.budget_used);
  }
  return c;
}

Comparison OpJudge::compare_quantised(const OpOutput& output, const TensorView& got, const TensorView& scales) const {
  const std::int64_t S = problem_.call.tokens, P = problem_.call.past;
  const std::int64_t matrices = got.dim(0) * got.dim(1), capacity = got.dim(2), dim = got.dim(3);
  const Tensor wide = widen_quantised(got, scales);
  const Tensor &want = want_.at(output.name), &before = given_[output.name],
               &scales_before = given_[scales_of(output.name)];
  Tensor new_got(DType::f32, {matrices, S, dim}), new_want(DType::f64, new_got.shape());
  std::vector<double> bounds;
  std::string touched;
  for (std::int64_t m = 0; m < matrices; ++m) {
    for (std::int64_t t = 0; t < capacity; ++t) {
      const std::int64_t row = m * capacity + t;
      const auto at = static_cast<std::size_t>(row * dim);
      if (t < P || t >= P + S) {
        const bool same = std::memcmp(got.as<std::int8_t>().data() + at, before.as<std::int8_t>().data() + at,
                                      static_cast<std::size_t>(dim)) == 0 &&
                          scales.as<bf16_t>()[static_cast<std::size_t>(row)].bits ==
                              scales_before.as<bf16_t>()[static_cast<std::size_t>(row)].bits;
        if (!same && touched.empty()) touched = concat(output.name, ": row ", t, " of matrix ", m, " was written to");
        continue;
      }
      double largest = 0;
      for (std::int64_t i = 0; i < dim; ++i) largest = std::max(largest, std::fabs(want.at(row * dim + i)));
      const double floor = 127.0 * std::numeric_limits<float>::min();
      // x / s is rounded twice before it is rounded to an integer: a few u(f32) of up to 127 steps.
      const double bound = std::max(kQuantisedRowError * largest * (1 + 0x1p-14), largest < floor ? floor : 0.0);
      for (std::int64_t i = 0; i < dim; ++i) {
        const auto to = static_cast<std::size_t>((m * S + t - P) * dim + i);
        new_got.as<float>()[to] = wide.as<float>()[at + static_cast<std::size_t>(i)];
        new_want.as<double>()[to] = want.at(row * dim + i);
        bounds.push_back(bound);
      }
    }
  }
  Comparison c = compare_within(output.name, new_got.view(), new_want.view(), bounds,
                                concat("half a step: ", kQuantisedRowError, " x the row's largest"));
  if (!touched.empty()) {
    c.passed = false;
    c.reason = std::move(touched);
  }
  return c;
}

bool OpJudge::higher_of_equals(const TensorView& got, const TensorView& want, std::int64_t row) const {
  const Config& c = problem_.config;
  const std::int64_t k = want.dim(1), E = problem_["logits"].dim(1);
  const std::int64_t size = c.topk_method == TopkMethod::greedy ? E : E / c.n_group;
  const auto ids = got.as<std::int64_t>().subspan(static_cast<std::size_t>(row * k), static_cast<std::size_t>(k));
  const auto right = want.as<std::int64_t>().subspan(static_cast<std::size_t>(row * k), static_cast<std::size_t>(k));
  const auto equal = [&](std::int64_t a, std::int64_t b) {
    const bool biased = problem_.has("bias");
    return problem_["logits"].at(row * E + a) == problem_["logits"].at(row * E + b) &&
           (!biased || problem_["bias"].at(a) == problem_["bias"].at(b)) && a / size == b / size;
  };
  for (const std::int64_t a : ids)
    for (const std::int64_t b : right)
      if (a > b && equal(a, b) && !std::binary_search(right.begin(), right.end(), a) &&
          !std::binary_search(ids.begin(), ids.end(), b))
        return true;
  return false;
}

Comparison OpJudge::compare_choice(const TensorView& got, std::int64_t& ties) const {
  const TensorView want = want_.at("topk_idx").view();
  const Values logits = values_of(problem_["logits"]);
  const double unit = kElementFactor * DerivedBound{DType::f32, logits.cols()}.unit();
  std::vector<double> slack;
  for (std::int64_t n = 0; n < logits.rows(); ++n)
    for (std::int64_t e = 0; e < logits.cols(); ++e) slack.push_back(unit * score_units(logits, n, e));
  const TensorView bias = problem_.has("bias") ? problem_["bias"].view() : TensorView{};
  std::vector<bool> tied;
  if (got.shape == want.shape)
    for (const Choice choice : judge_choices(got, want, problem_["logits"].view(), slack, problem_.config, bias))
      tied.push_back(choice == Choice::tie && !higher_of_equals(got, want, static_cast<std::int64_t>(tied.size())));
  ties += std::count(tied.begin(), tied.end(), true);
  Comparison c = compare_exact("topk_idx", replace_rows(got, want, tied).view(), want);
  c.rule = "the same experts, or others whose scores are within rounding of theirs";
  return c;
}

}  // namespace dsv2::harness
