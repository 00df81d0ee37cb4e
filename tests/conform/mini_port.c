/* A port of BitNet b1.58 to C99, standard library only, from docs/porting.md: reads a homework exported by
 * `--for raw`, computes every tensor of its list in float32, writes FOLDER/dump: raw files, index.json.
 *
 *     cc -O2 -std=c99 -o mini_port mini_port.c -lm && ./mini_port FOLDER
 *
 * Written plainly: one function an op, matrices row after row. Shapes are those of homework.json's two models;
 * ids are read from it, everything else from the files of its folders.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = 7, PATH = 1024, NAME = 256 };

typedef struct {
    const char *name;
    int layers, vocab, width, heads, kv_heads, ffn, sub, relu2, tied;
    float theta;
} Config;

static const Config MODELS[2] = {
    {"bitnet", 2, 160, 128, 4, 2, 256, 1, 1, 1, 500000.0f},
    {"llama", 1, 96, 128, 4, 2, 256, 0, 0, 0, 10000.0f},
};

static const char *folder;
static FILE *list;                         /* dump/index.json */

/* ---- memory and files -------------------------------------------------------------------- */

static void fail(const char *what, const char *which) {
    fprintf(stderr, "error: %s: %s\n", what, which);
    exit(1);
}

static void *room(size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) fail("out of memory", "");
    return p;
}

static void *read_file(const char *group, const char *name, size_t bytes) {
    char path[PATH];
    snprintf(path, sizeof path, "%s/%s/%s.bin", folder, group, name);
    FILE *f = fopen(path, "rb");
    if (!f) fail("cannot open", path);
    void *data = room(bytes);
    if (fread(data, 1, bytes, f) != bytes) fail("too short", path);
    fclose(f);
    return data;
}

static float *floats(const char *group, const char *name, size_t n) { return read_file(group, name, 4 * n); }
static int8_t *bytes(const char *group, const char *name, size_t n) { return read_file(group, name, n); }

/* One tensor: its file, its entry in the index. A dimension of 0 ends the shape. */
static void dump(const char *name, const void *data, const char *dtype, int a, int b, int c) {
    char path[PATH], shape[64];
    size_t n = (size_t)(a ? a : 1) * (b ? b : 1) * (c ? c : 1) * (dtype[0] == 'f' ? 4 : 1);
    snprintf(path, sizeof path, "%s/dump/%s.bin", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) fail("cannot write", path);
    if (c) snprintf(shape, sizeof shape, "%d, %d, %d", a, b, c);
    else if (b) snprintf(shape, sizeof shape, "%d, %d", a, b);
    else if (a) snprintf(shape, sizeof shape, "%d", a);
    else shape[0] = 0;
    fprintf(list, "%s\n \"%s\": {\"file\": \"%s.bin\", \"dtype\": \"%s\", \"shape\": [%s]}",
            ftell(list) > 1 ? "," : "", name, name, dtype, shape);
}

static void dump_float(const char *at, const char *name, const float *x, int a, int b) {
    char full[NAME];
    if (snprintf(full, sizeof full, "%s%s", at, name) >= NAME) fail("name too long", name);
    dump(full, x, "float32", a, b, 0);
}

/* The ids of a model: the numbers between the brackets behind "ids" behind its name. */
static void read_ids(const char *model, int ids[T]) {
    char path[PATH], key[32];
    snprintf(path, sizeof path, "%s/homework.json", folder);
    FILE *f = fopen(path, "rb");
    if (!f) fail("cannot open", path);
    char *text = room(1 << 20);
    if (fread(text, 1, (1 << 20) - 1, f) == 0) fail("empty", path);
    fclose(f);
    snprintf(key, sizeof key, "\"%s\": {", model);
    char *p = strstr(text, key);
    p = p ? strstr(p, "\"ids\": [") : NULL;
    if (!p) fail("no ids in", path);
    p += strlen("\"ids\": [");
    for (int i = 0; i < T; i++, p++) ids[i] = (int)strtol(p, &p, 10);
    free(text);
}

/* ---- the arithmetic ---------------------------------------------------------------------- */

typedef struct { int8_t *q; float *scale; int rows, width; } Codes;
typedef struct { int8_t *q; float scale; int out, in; } Trits;

static float clampf(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

static Codes quantise(const float *x, int rows, int width) {
    Codes c = {room((size_t)rows * width), room(4 * (size_t)rows), rows, width};
    for (int t = 0; t < rows; t++) {
        const float *row = x + (size_t)t * width;
        float a = 1e-5f;
        for (int k = 0; k < width; k++) a = fmaxf(a, fabsf(row[k]));
        float s = 127.0f / a;
        for (int k = 0; k < width; k++)
            c.q[(size_t)t * width + k] = (int8_t)clampf(rintf(row[k] * s), -128.0f, 127.0f);   /* half to even */
        c.scale[t] = a / 127.0f;
    }
    return c;
}

static Trits ternarise(const float *w, int out, int in) {
    Trits r = {room((size_t)out * in), 0, out, in};
    double sum = 0;                        /* a float32 sum is far off for large matrices */
    for (int i = 0; i < out * in; i++) sum += fabsf(w[i]);
    r.scale = fmaxf((float)(sum / (out * in)), 1e-5f);
    float s = 1.0f / r.scale;
    for (int i = 0; i < out * in; i++) r.q[i] = (int8_t)clampf(rintf(w[i] * s), -1.0f, 1.0f);
    return r;
}

static float *product(Codes x, Trits w) {
    float *y = room(4 * (size_t)x.rows * w.out);
    for (int t = 0; t < x.rows; t++)
        for (int n = 0; n < w.out; n++) {
            int32_t sum = 0;
            for (int k = 0; k < w.in; k++) sum += x.q[(size_t)t * w.in + k] * w.q[(size_t)n * w.in + k];
            y[t * w.out + n] = (float)sum * (x.scale[t] * w.scale);
        }
    return y;
}

static float *rms_norm(const float *x, const float *gain, int rows, int width) {
    float *y = room(4 * (size_t)rows * width);
    for (int t = 0; t < rows; t++) {
        double sum = 0;
        for (int k = 0; k < width; k++) sum += (double)x[t * width + k] * x[t * width + k];
        float rstd = (float)(1.0 / sqrt(sum / width + 1e-5));
        for (int k = 0; k < width; k++) y[t * width + k] = x[t * width + k] * rstd * gain[k];
    }
    return y;
}

static float *rope(const float *x, int heads, int dh, float theta) {
    float *y = room(4 * (size_t)T * heads * dh);
    for (int t = 0; t < T; t++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < dh / 2; i++) {
                double angle = t * pow(theta, -2.0 * i / dh);
                float c = (float)cos(angle), s = (float)sin(angle);
                const float *in = x + (t * heads + h) * dh;
                float *out = y + (t * heads + h) * dh;
                out[i] = in[i] * c - in[i + dh / 2] * s;
                out[i + dh / 2] = in[i + dh / 2] * c + in[i] * s;
            }
    return y;
}

/* (H, tokens, tokens): the causal softmax. */
static float *probabilities(const float *q, const float *k, int tokens, int heads, int kv, int dh) {
    float *p = room(4 * (size_t)heads * tokens * tokens);
    for (int h = 0; h < heads; h++)
        for (int t = 0; t < tokens; t++) {
            float *row = p + ((size_t)h * tokens + t) * tokens, top = -INFINITY, sum = 0;
            for (int s = 0; s <= t; s++) {
                double dot = 0;
                for (int i = 0; i < dh; i++)
                    dot += (double)q[(t * heads + h) * dh + i] * k[(s * kv + h / (heads / kv)) * dh + i];
                row[s] = (float)(dot / sqrt(dh));
                top = fmaxf(top, row[s]);
            }
            for (int s = 0; s <= t; s++) sum += row[s] = expf(row[s] - top);
            for (int s = 0; s <= t; s++) row[s] /= sum;
        }
    return p;
}

static float *mix(const float *p, const float *v, int tokens, int heads, int kv, int dh) {
    float *o = room(4 * (size_t)tokens * heads * dh);
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < dh; i++) {
                const float *row = p + ((size_t)h * tokens + t) * tokens;
                double sum = 0;
                for (int s = 0; s <= t; s++) sum += (double)row[s] * v[(s * kv + h / (heads / kv)) * dh + i];
                o[(t * heads + h) * dh + i] = (float)sum;
            }
    return o;
}

static float *gated(const float *gate, const float *up, int n, int relu2) {
    float *y = room(4 * (size_t)n);
    for (int i = 0; i < n; i++) {
        float r = fmaxf(gate[i], 0.0f);
        y[i] = relu2 ? r * r * up[i] : gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
    return y;
}

static float *add(const float *x, const float *y, int n) {
    float *sum = room(4 * (size_t)n);
    for (int i = 0; i < n; i++) sum[i] = x[i] + y[i];
    return sum;
}

/* ---- the models -------------------------------------------------------------------------- */

static Codes quantise_and_dump(const char *at, const char *name, const float *x, int rows, int width) {
    char full[NAME];
    Codes c = quantise(x, rows, width);
    snprintf(full, sizeof full, "%s%s.x_q", at, name);
    dump(full, c.q, "int8", rows, width, 0);
    snprintf(full, sizeof full, "%s%s.x_scale", at, name);
    dump(full, c.scale, "float32", rows, 1, 0);
    return c;
}

static void dump_trits(const char *at, const char *name, Trits w) {
    char full[NAME];
    snprintf(full, sizeof full, "%s%s.w_q", at, name);
    dump(full, w.q, "int8", w.out, w.in, 0);
    snprintf(full, sizeof full, "%s%s.w_scale", at, name);
    dump(full, &w.scale, "float32", 0, 0, 0);
}

/* y = x times a weight of this layer; `at` is "bitnet.layers.0.", `layer` its file name without the model. */
static float *project(const Config *m, const char *at, const char *layer, const char *y, const char *w, Codes x,
                      int out) {
    char name[NAME], scale[NAME + 8];
    snprintf(name, sizeof name, "%s%s", layer, w);
    snprintf(scale, sizeof scale, "%s.scale", name);
    Trits trits = {bytes(m->name, name, (size_t)out * x.width), *floats(m->name, scale, 1), out, x.width};
    dump_trits(at, w, trits);
    float *result = product(x, trits);
    dump_float(at, y, result, x.rows, out);
    return result;
}

static float *norm(const Config *m, const char *at, const char *layer, const char *name, const float *x,
                   int width) {
    char file[NAME];
    snprintf(file, sizeof file, "%s%s.gain", layer, name);
    float *y = rms_norm(x, floats(m->name, file, width), T, width);
    dump_float(at, name, y, T, width);
    return y;
}

/* Behind a sub-norm where the model has one: the codes of its result, else of x itself. */
static Codes entering(const Config *m, const char *at, const char *layer, const char *plain, const char *sub,
                      const float *x, int width) {
    return m->sub ? quantise_and_dump(at, sub, norm(m, at, layer, sub, x, width), T, width)
                  : quantise_and_dump(at, plain, x, T, width);
}

static float *run_layer(const Config *m, int l, const float *x) {
    char layer[32], at[64], full[NAME];
    int D = m->width, dh = D / m->heads, KV = m->kv_heads * dh;
    snprintf(layer, sizeof layer, "layers.%d.", l);
    snprintf(at, sizeof at, "%s.%s", m->name, layer);
    Codes c = quantise_and_dump(at, "attn_norm", norm(m, at, layer, "attn_norm", x, D), T, D);
    float *q = project(m, at, layer, "q", "attn.wq", c, D);
    float *k = project(m, at, layer, "k", "attn.wk", c, KV);
    float *v = project(m, at, layer, "v", "attn.wv", c, KV);
    q = rope(q, m->heads, dh, m->theta);
    k = rope(k, m->kv_heads, dh, m->theta);
    dump_float(at, "q_rope", q, T, D);
    dump_float(at, "k_rope", k, T, KV);
    float *p = probabilities(q, k, T, m->heads, m->kv_heads, dh);
    snprintf(full, sizeof full, "%sprobs", at);
    dump(full, p, "float32", m->heads, T, T);
    float *o = mix(p, v, T, m->heads, m->kv_heads, dh);
    dump_float(at, "attn", o, T, D);
    c = entering(m, at, layer, "attn", "attn_sub_norm", o, D);
    float *h = add(x, project(m, at, layer, "o", "attn.wo", c, D), T * D);
    dump_float(at, "h", h, T, D);
    c = quantise_and_dump(at, "ffn_norm", norm(m, at, layer, "ffn_norm", h, D), T, D);
    float *gate = project(m, at, layer, "gate", "ffn.w_gate", c, m->ffn);
    float *up = project(m, at, layer, "up", "ffn.w_up", c, m->ffn);
    float *act = gated(gate, up, T * m->ffn, m->relu2);
    dump_float(at, "act", act, T, m->ffn);
    c = entering(m, at, layer, "act", "ffn_sub_norm", act, m->ffn);
    float *out = add(h, project(m, at, layer, "down", "ffn.w_down", c, D), T * D);
    dump_float(at, "out", out, T, D);
    return out;
}

static void run_model(const Config *m) {
    int ids[T], D = m->width;
    char at[32];
    snprintf(at, sizeof at, "%s.", m->name);
    read_ids(m->name, ids);
    float *table = floats(m->name, "embedding", (size_t)m->vocab * D), *x = room(4 * (size_t)T * D);
    for (int t = 0; t < T; t++) memcpy(x + t * D, table + (size_t)ids[t] * D, 4 * (size_t)D);
    dump_float(at, "embedding_out", x, T, D);
    for (int l = 0; l < m->layers; l++) x = run_layer(m, l, x);
    x = norm(m, at, "", "final_norm", x, D);
    float *head = m->tied ? table : floats(m->name, "head", (size_t)m->vocab * D);
    float *logits = room(4 * (size_t)T * m->vocab);
    for (int t = 0; t < T; t++)
        for (int n = 0; n < m->vocab; n++) {
            double sum = 0;
            for (int i = 0; i < D; i++) sum += (double)x[t * D + i] * head[(size_t)n * D + i];
            logits[t * m->vocab + n] = (float)sum;
        }
    dump_float(at, "logits", logits, T, m->vocab);
}

/* ---- the probes -------------------------------------------------------------------------- */

static void run_probes(void) {
    static const struct { const char *name; int rows, width; } Q[] = {
        {"quant.ties.x", 3, 9}, {"quant.small.x", 4, 8}, {"quant.reciprocal.x", 4, 8}, {"quant.wide.x", 3, 2560}};
    static const struct { const char *name; int out, in; } W[] = {
        {"ternary.ties.w", 4, 4}, {"ternary.offset.w", 6, 10}, {"ternary.small.w", 4, 6}};
    const char *P = "probes";
    for (int i = 0; i < 4; i++)
        quantise_and_dump("", Q[i].name, floats(P, Q[i].name, Q[i].rows * Q[i].width), Q[i].rows, Q[i].width);
    for (int i = 0; i < 3; i++)
        dump_trits("", W[i].name, ternarise(floats(P, W[i].name, W[i].out * W[i].in), W[i].out, W[i].in));
    Codes c = {bytes(P, "product.worst.x_q", 3 * 2560), floats(P, "product.worst.x_scale", 3), 3, 2560};
    Trits w = {bytes(P, "product.worst.w_q", 3 * 2560), *floats(P, "product.worst.w_scale", 1), 3, 2560};
    dump_float("", "product.worst.y", product(c, w), 3, 3);
    float *g = floats(P, "rmsnorm.g", 12);
    dump_float("", "rmsnorm.small.y", rms_norm(floats(P, "rmsnorm.small.x", 36), g, 3, 12), 3, 12);
    dump_float("", "rmsnorm.large.y", rms_norm(floats(P, "rmsnorm.large.x", 24), g, 2, 12), 2, 12);
    float *gate = floats(P, "glu.large.gate", 20), *up = floats(P, "glu.large.up", 20);
    dump_float("", "glu.large.relu2", gated(gate, up, 20, 1), 2, 10);
    dump_float("", "glu.large.swiglu", gated(gate, up, 20, 0), 2, 10);
    float *x = floats(P, "residual.large.x", 12), *y = floats(P, "residual.large.y", 12);
    dump_float("", "residual.large.sum", add(x, y, 12), 2, 6);
    float *q = floats(P, "attention.single.q", 32), *k = floats(P, "attention.single.k", 16);
    float *p = probabilities(q, k, 1, 4, 2, 8), *v = floats(P, "attention.single.v", 16);
    dump_float("", "attention.single.o", mix(p, v, 1, 4, 2, 8), 1, 32);
}

static void run_backward(void) {
    enum { M = 5, N = 7, K = 12 };
    float *x = floats("probes", "train.x", M * K), *dy = floats("probes", "train.dy", M * N);
    float dx[M * K], dw[N * K];
    Codes c = quantise_and_dump("", "train.x", x, M, K);
    Trits w = ternarise(floats("probes", "train.w", N * K), N, K);
    dump_trits("", "train.w", w);
    for (int m = 0; m < M; m++)
        for (int k = 0; k < K; k++) {
            double sum = 0;
            for (int n = 0; n < N; n++) sum += (double)dy[m * N + n] * w.scale * w.q[n * K + k];
            dx[m * K + k] = (float)sum;
        }
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            double sum = 0;                /* the quantised activation, no mask, nothing through a scale */
            for (int m = 0; m < M; m++) sum += (double)dy[m * N + n] * (c.q[m * K + k] * c.scale[m]);
            dw[n * K + k] = (float)sum;
        }
    dump_float("", "train.dx", dx, M, K);
    dump_float("", "train.dw", dw, N, K);
}

static void run_adamw(void) {
    const double lr = 0.05, decay = 0.1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, max_norm = 1.0;
    static const struct { const char *name; int n, a, b; double decays; } P[2] = {
        {"matrix", 20, 5, 4, 1.0}, {"gain", 4, 4, 0, 0.0}};
    float *p[2], m[2][20] = {{0}}, v[2][20] = {{0}}, *g[2];
    char name[NAME], at[32];
    p[0] = floats("probes", "train.p.matrix", 20);
    p[1] = floats("probes", "train.p.gain", 4);
    for (int step = 1; step <= 2; step++) {
        double square = 0;
        for (int i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "train.step%d.grad.%s", step, P[i].name);
            g[i] = floats("probes", name, P[i].n);
            for (int j = 0; j < P[i].n; j++) square += (double)g[i][j] * g[i][j];
        }
        double factor = sqrt(square) > max_norm ? max_norm / sqrt(square) : 1.0;
        snprintf(at, sizeof at, "train.step%d.", step);
        for (int i = 0; i < 2; i++) {
            for (int j = 0; j < P[i].n; j++) {
                g[i][j] = (float)(g[i][j] * factor);
                m[i][j] = (float)(beta1 * m[i][j] + (1 - beta1) * g[i][j]);
                v[i][j] = (float)(beta2 * v[i][j] + (1 - beta2) * g[i][j] * g[i][j]);
                double m_hat = m[i][j] / (1 - pow(beta1, step)), v_hat = v[i][j] / (1 - pow(beta2, step));
                p[i][j] = (float)(p[i][j] * (1 - lr * decay * P[i].decays) - lr * m_hat / (sqrt(v_hat) + eps));
            }
            const float *made[4] = {g[i], m[i], v[i], p[i]};
            const char *letters[4] = {"clipped", "m", "v", "p"};
            for (int k = 0; k < 4; k++) {
                snprintf(name, sizeof name, "%s.%s", letters[k], P[i].name);
                dump_float(at, name, made[k], P[i].a, P[i].b);
            }
        }
    }
}

int main(int argc, char **argv) {
    char path[PATH];
    if (argc != 2) fail("usage", "mini_port FOLDER");
    folder = argv[1];
    snprintf(path, sizeof path, "%s/dump/index.json", folder);
    list = fopen(path, "wb");
    if (!list) fail("cannot write", path);
    fputs("{", list);
    run_probes();
    for (int i = 0; i < 2; i++) run_model(&MODELS[i]);
    run_backward();
    run_adamw();
    fputs("\n}\n", list);
    return fclose(list) ? 1 : 0;           /* memory lives as long as the program */
}
