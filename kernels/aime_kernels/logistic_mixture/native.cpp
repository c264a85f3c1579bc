// The likelihood of reference.py with its mean, or with the gradient of a loss of both, in one pass over the parameters.
// Each vector lane handles one pixel; all intermediate values stay in registers or on the stack. Names and formulas are
// those of fused.py.
//
// Frames x and centre are [N, 3, P], blocks [N, M, 10, P], all contiguous. Vectors are an extension of GCC and Clang.
// A comparison with NaN is false, and every select is written so that it then keeps the NaN.

#include <cstdint>
#include <cstring>
#include <vector>

// Interleave long chains of arithmetic: GCC does it for x86 only with these options (docs/log.md), others ignore them.
#pragma GCC optimize("schedule-insns", "sched-pressure", "unroll-loops")

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef std::int32_t Bits __attribute__((vector_size(4 * LANES)));

constexpr float HALF_BIN = 1.0f / 255.0f;
constexpr float MIN_SCALE = 9.1188196555e-4f;  // e^-7
constexpr float MID_SCALE = 0.13533528324f;    // e^-2
constexpr float SCALE_CAP = 6.7379469991e-3f;  // e^-5
constexpr float FAR = 40.0f;                   // e^-40 is negligible beside 1
constexpr float NARROWEST = 40.0f;             // a raw log-scale below -40 gives the smallest scale
constexpr float WIDEST = -80.0f;               // and one above 80 the largest
constexpr float SATURATED = 10.0f;                   // tanh 10 is 1
constexpr float NEGLIGIBLE = -60.0f;                 // nats below the best component; gradients stay normal

// Reads and writes all lanes, or only those of the pixels that a frame has left.
struct All {
    Vector load(const float* from) const {
        Vector x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }
    void store(float* to, Vector x) const { std::memcpy(to, &x, sizeof x); }
    long size() const { return LANES; }
};

struct Some {
    long count;

    Vector load(const float* from) const {
        Vector x = {};
        std::memcpy(&x, from, 4 * count);
        return x;
    }
    void store(float* to, Vector x) const { std::memcpy(to, &x, 4 * count); }
    long size() const { return count; }
};

inline Vector at_least(float low, Vector x) { return x < low ? Vector{} + low : x; }
inline Vector at_most(float high, Vector x) { return x > high ? Vector{} + high : x; }
inline Vector magnitude(Vector x) { return (Vector)((Bits)x & 0x7fffffff); }
inline Vector with_sign(Vector x, Vector sign) { return (Vector)((Bits)x | ((Bits)sign & (1 << 31))); }

// e^x for x in [-87, 87], to two units in the last place.
inline Vector exponential(Vector x) {
    const Vector shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: its last bits are the nearest integer
    const Vector n = shifted - 12582912.0f;
    const Vector r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    Vector p = r * 1.9875691e-4f + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return p * (Vector)(((Bits)shifted << 23) + 0x3f800000);
}

// log x of a normal x > 0, to two units in the last place.
inline Vector logarithm(Vector x) {
    const Bits exponent = ((Bits)x - 0x3f3504f3) >> 23;  // leaves a mantissa from sqrt(1/2) to sqrt(2)
    const Vector n = __builtin_convertvector(exponent, Vector);
    const Vector m = (Vector)((Bits)x - exponent * 0x800000) - 1.0f, square = m * m;
    Vector p = m * 7.0376836e-2f - 1.1514610e-1f;
    p = p * m + 1.1676998e-1f;
    p = p * m - 1.2420141e-1f;
    p = p * m + 1.4249323e-1f;
    p = p * m - 1.6668057e-1f;
    p = p * m + 2.0000714e-1f;
    p = p * m - 2.4999994e-1f;
    p = p * m + 3.3333331e-1f;
    const Vector log = (p * m * square - n * 2.12194440e-4f) - 0.5f * square + m + n * 0.693359375f;
    return x == x ? log : x;
}

// A value's bin: whether it is an outer one, 1 in an inner bin and -sign(x) in an outer one, and x - centre.
struct Bin {
    Bits outer;
    Vector flip, offset;
};

template <class Lanes>
inline Bin bin_of(const Lanes& lanes, const float* x, const float* centre) {
    const Vector value = lanes.load(x), one = Vector{} + 1.0f;
    const Bits outer = magnitude(value) > 1.0f - HALF_BIN;
    return {outer, outer ? with_sign(one, -value) : one, value - lanes.load(centre)};
}

// log p of one channel is log(ratio) + log; `pull` and `width` are its derivatives by location and raw log-scale.
struct Channel {
    Vector ratio, log, pull, width;
};

// Of a channel `distance` away from its location.
//
// Divisions cost as much as exponentials. Only two remain: with E = e^-raw, 1/s is (E + C)^2 / ((E + C) (S (E + C) + N)),
// and with e = e^-h, both 1/sinh h and the density are multiples of 1 / ((1 - e^2) (e + q (1 + e^2) + q^2 e)).
inline Channel channel(Vector distance, Vector raw, const Bin& bin) {
    const Vector narrow = exponential(at_most(NARROWEST, at_least(WIDEST, -raw)));
    const Vector sum = narrow + SCALE_CAP;
    const Vector part = 1.0f / (sum * (MIN_SCALE * sum + MID_SCALE));
    const Vector inverse = sum * sum * part;
    const Vector h = inverse * HALF_BIN, square = h * h, none = {};
    const Vector y = distance * inverse * bin.flip + (bin.outer ? h : none);
    const Vector size = magnitude(y), q = exponential(-at_most(FAR, size)), e = exponential(-h);
    const Vector series = h * (2.0f + square * (1.0f / 3.0f + square * (1.0f / 60.0f + square * (1.0f / 2520.0f))));
    const Vector sinh = h < 0.7f ? series * e : 1.0f - e * e;  // e times 2 sinh h, and no digit lost for a small h
    const Vector cosh = 1.0f + e * e;
    const Vector total = bin.outer ? 1.0f + q : e + q * (cosh + q * e);
    const Vector reciprocal = 1.0f / (total * sinh);
    const Vector density = reciprocal * sinh, half = none + 0.5f;
    const Vector by_width = bin.outer ? none : h * (cosh * total * reciprocal - sinh * q * density);
    const Vector steepness = (bin.outer ? half : e + q * e) * density * (1.0f - q);
    const Vector fall = with_sign(steepness, y) - (bin.outer ? half : none);
    return {
        bin.outer ? density : sinh * density,
        bin.outer ? 0.5f * (y - size) : -size,
        fall * bin.flip * inverse,
        MID_SCALE * narrow * part * (y * fall - by_width),
    };
}

// Some pixels of a frame, one per lane; rows of parameters are `stride` apart.
template <class Lanes>
struct Pixels {
    Lanes lanes;
    const float* blocks;
    long mixtures, stride;
    Bin red, green, blue;

    Pixels(Lanes lanes, const float* x, const float* centre, const float* blocks, long mixtures, long stride)
        : lanes(lanes), blocks(blocks), mixtures(mixtures), stride(stride), red(bin_of(lanes, x, centre)),
          green(bin_of(lanes, x + stride, centre + stride)), blue(bin_of(lanes, x + 2 * stride, centre + 2 * stride)) {}

    Vector parameter(long k, long row) const { return lanes.load(blocks + (10 * k + row) * stride); }
};

struct Component {
    Vector logit, location[3], log_prob, gradient[9];
};

// log p(x | component k) and its derivatives by parameters 1 to 9. The compiler drops what a caller ignores.
template <class Lanes>
inline Component component(const Pixels<Lanes>& at, long k) {
    Component out;
    out.logit = at.parameter(k, 0);
    for (int c = 0; c < 3; ++c) out.location[c] = at.parameter(k, 1 + c);
    const Vector red = at.red.offset - out.location[0], green = at.green.offset - out.location[1];
    const Vector blue = at.blue.offset - out.location[2];
    Vector below[3];
    for (int c = 0; c < 3; ++c)
        below[c] = 1.0f + exponential(-2.0f * at_most(SATURATED, at_least(-SATURATED, at.parameter(k, 7 + c))));
    const Vector twice = 2.0f / (below[0] * below[1] * below[2]);  // three tanh with one division
    const Vector c0 = below[1] * below[2] * twice - 1.0f;
    const Vector c1 = below[0] * below[2] * twice - 1.0f, c2 = below[0] * below[1] * twice - 1.0f;
    const Channel r = channel(red, at.parameter(k, 4), at.red);
    const Channel g = channel(green - c0 * red, at.parameter(k, 5), at.green);
    const Channel b = channel(blue - c1 * red - c2 * green, at.parameter(k, 6), at.blue);
    out.log_prob = logarithm(r.ratio * g.ratio * b.ratio) + r.log + g.log + b.log;
    out.gradient[0] = r.pull - c0 * g.pull - c1 * b.pull;
    out.gradient[1] = g.pull - c2 * b.pull;
    out.gradient[2] = b.pull;
    out.gradient[3] = r.width;
    out.gradient[4] = g.width;
    out.gradient[5] = b.width;
    out.gradient[6] = (1.0f - c0 * c0) * g.pull * red;
    out.gradient[7] = (1.0f - c1 * c1) * b.pull * red;
    out.gradient[8] = (1.0f - c2 * c2) * b.pull * green;
    return out;
}

inline Vector share(Vector log) { return exponential(at_least(NEGLIGIBLE, log)); }

// log sum_k e^(terms_k).
inline Vector log_sum_exp(const Vector* terms, long mixtures) {
    Vector best = terms[0], total = {};
    for (long k = 1; k < mixtures; ++k) best = terms[k] > best ? terms[k] : best;
    for (long k = 0; k < mixtures; ++k) total += share(terms[k] - best);
    return best + logarithm(total);
}

// Memory of one thread.
struct Scratch {
    std::vector<Component> parts;
    std::vector<Vector> joint, logit;
    Vector total, total_weight;

    explicit Scratch(long mixtures) : parts(mixtures), joint(mixtures), logit(mixtures) {}

    template <bool Gradients, class Lanes>
    void fill(const Pixels<Lanes>& at) {
        for (long k = 0; k < at.mixtures; ++k) {
            const Component part = component(at, k);
            parts[k].logit = part.logit;
            std::memcpy(parts[k].location, part.location, sizeof part.location);
            if (Gradients) std::memcpy(parts[k].gradient, part.gradient, sizeof part.gradient);
            joint[k] = part.log_prob + part.logit;
            logit[k] = part.logit;
        }
        total = log_sum_exp(joint.data(), at.mixtures);
        total_weight = log_sum_exp(logit.data(), at.mixtures);
    }
};

// The sum over all lanes that hold a pixel.
template <class Lanes>
inline double sum_of(const Lanes& lanes, Vector x) {
    double sum = 0.0;
    for (long i = 0; i < lanes.size(); ++i) sum += x[i];
    return sum;
}

// Writes the expected values of the pixels, and returns their log p.
template <class Lanes>
inline double values(const Pixels<Lanes>& at, Scratch& s, const float* centre, float* mean) {
    s.fill<false>(at);
    Vector expected[3];
    for (int c = 0; c < 3; ++c) expected[c] = at.lanes.load(centre + c * at.stride);
    for (long k = 0; k < at.mixtures; ++k) {
        const Vector weight = share(s.logit[k] - s.total_weight);
        for (int c = 0; c < 3; ++c) expected[c] += weight * s.parts[k].location[c];
    }
    for (int c = 0; c < 3; ++c) at.lanes.store(mean + c * at.stride, expected[c]);
    return sum_of(at.lanes, s.total - s.total_weight);
}

struct Sums {
    double log_prob = 0.0, error = 0.0;
};

// Overwrites the parameters by the gradient of -of_nats log p + of_error (mean - x)^2, writes that of the centre, and
// adds up log p and squared errors.
template <class Lanes>
inline void gradients(const Pixels<Lanes>& at, Scratch& s, float of_nats, float of_error, float* blocks,
                      float* of_centre, Sums& sums) {
    s.fill<true>(at);
    Vector error[3] = {-at.red.offset, -at.green.offset, -at.blue.offset}, squares = {}, moved[3] = {}, average = {};
    for (long k = 0; k < at.mixtures; ++k) {
        s.logit[k] = share(s.logit[k] - s.total_weight);
        for (int c = 0; c < 3; ++c) error[c] += s.logit[k] * s.parts[k].location[c];
    }
    sums.log_prob += sum_of(at.lanes, s.total - s.total_weight);
    for (int c = 0; c < 3; ++c) {
        squares += error[c] * error[c];
        error[c] *= 2.0f * of_error;
    }
    sums.error += sum_of(at.lanes, squares);
    for (long k = 0; k < at.mixtures; ++k) {
        Component& part = s.parts[k];
        part.log_prob = error[0] * part.location[0] + error[1] * part.location[1] + error[2] * part.location[2];
        average += s.logit[k] * part.log_prob;
    }
    for (long k = 0; k < at.mixtures; ++k) {
        const Component& part = s.parts[k];
        const Vector weight = s.logit[k], likely = -of_nats * share(s.joint[k] - s.total);
        float* out = blocks + 10 * k * at.stride;
        at.lanes.store(out, likely + weight * (part.log_prob - average + of_nats));
        for (int row = 0; row < 9; ++row) {
            Vector gradient = likely * part.gradient[row];
            if (row < 3) {
                gradient += weight * error[row];
                moved[row] += gradient;
            }
            at.lanes.store(out + (1 + row) * at.stride, gradient);
        }
    }
    for (int c = 0; c < 3; ++c) at.lanes.store(of_centre + c * at.stride, moved[c]);
}

// Calls `work(lanes, first)` for the pixels of one frame.
template <class Work>
inline void each_group(long pixels, Work work) {
    long first = 0;
    for (; first + LANES <= pixels; first += LANES) work(All{}, first);
    if (first < pixels) work(Some{pixels - first}, first);
}

}  // namespace

extern "C" {

// log p [N] and mean [N, 3, P].
void terms(const float* x, const float* centre, const float* blocks, long frames, long mixtures, long pixels,
           int threads, float* log_prob, float* mean) {
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(mixtures);
#pragma omp for schedule(static)
        for (long n = 0; n < frames; ++n) {
            const long frame = 3 * n * pixels, block = 10 * n * mixtures * pixels;
            double sum = 0.0;
            each_group(pixels, [&](auto lanes, long first) {
                const long at = frame + first;
                const float* parameters = blocks + block + first;
                const Pixels<decltype(lanes)> group(lanes, x + at, centre + at, parameters, mixtures, pixels);
                sum += values(group, scratch, centre + at, mean + at);
            });
            log_prob[n] = static_cast<float>(sum);
        }
    }
}

// log p [N], the squared error of the mean [N], and gradients of the loss sum_n of_nats_n * -log p_n + of_error * error_n:
// blocks are overwritten by theirs.
void gradients(const float* x, const float* centre, const float* of_nats, long frames, long mixtures, long pixels,
               int threads, float of_error, float* blocks, float* log_prob, float* error, float* of_centre) {
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(mixtures);
#pragma omp for schedule(static)
        for (long n = 0; n < frames; ++n) {
            const long frame = 3 * n * pixels, block = 10 * n * mixtures * pixels;
            Sums sums;
            each_group(pixels, [&](auto lanes, long first) {
                const long at = frame + first;
                float* parameters = blocks + block + first;
                const Pixels<decltype(lanes)> group(lanes, x + at, centre + at, parameters, mixtures, pixels);
                gradients(group, scratch, of_nats[n], of_error, parameters, of_centre + at, sums);
            });
            log_prob[n] = static_cast<float>(sums.log_prob);
            error[n] = static_cast<float>(sums.error);
        }
    }
}
}
